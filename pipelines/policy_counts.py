"""How often each list and rule of a policy would decide on a log, and what that does to the alert budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from rich.markup import escape

from fraud.bundle import Bundle
from fraud.config import Config, subjects_of
from fraud.decisions import ALLOW, DECISIONS, DecisionArray, Policy
from fraud.enrich import empty_carry, enrich
from fraud.errors import DataError
from fraud.events import Events
from fraud.logs import check_usable, read_log
from fraud.rules import MODEL
from fraud.scoring import NO_DECISION, Tables, enrich_spec, risk_of, score_log, user_chunks
from fraud.splits import decides
from fraud.tables import scoring_config, tables_of
from fraud.verdicts import NO_RULE, RuleArray, rule_verdicts
from pipelines.console import Screen
from pipelines.score import log_config

Json = dict[str, Any]  # Any: JSON


def count_deciders(config: Config, policy: Policy, bundle: Bundle | None, events: str) -> Json:
    """Return how often each list and rule, and the model, would decide on a log.

    bundle: whose scores the model decides by; without one the model's own decisions are not known. Raises DataError.
    """
    read_with = scoring_config(config, labels=config.labels) if bundle is None else log_config(bundle, config)
    n_by_rule = np.zeros(len(policy.in_order), dtype=np.int64)
    n_by_decision = np.zeros(len(DECISIONS), dtype=np.int64)
    n_decided = 0
    with closing(read_log(read_with, events=events)) as log:
        check_usable(log)
        if not log.n_events:
            raise DataError(f"{events}: the log holds no row; there is nothing to count")
        tables = tables_of(log, read_with)
        for load in log.partitions:
            for rule_N, decision_N in _decisions(load().events, read_with, policy, bundle, tables):
                n_by_rule += np.bincount(rule_N[rule_N != NO_RULE], minlength=len(n_by_rule))
                n_decided += int((decision_N != NO_DECISION).sum())
                n_by_decision += np.bincount(decision_N[decision_N > NO_DECISION], minlength=len(n_by_decision))
        rows_in, n_quarantined = log.rows_in, len(log.quarantine)
    kinds = ["list"] * len(policy.lists) + ["rule"] * len(policy.rules)
    decided_by = [
        {"name": rule.name, "kind": kind, "decision": rule.decision, "events": int(n), "share": n / max(n_decided, 1)}
        for rule, kind, n in zip(policy.in_order, kinds, n_by_rule.tolist(), strict=True)
    ]
    n_alerts = sum(row["events"] for row in decided_by if row["decision"] != DECISIONS[ALLOW])
    by_model = n_decided - int(n_by_rule.sum())
    return {
        "rows_in": rows_in,
        "quarantined": n_quarantined,
        "decision_events": n_decided,
        "decided_by": decided_by,
        "model": by_model,
        "rules_alert_rate": n_alerts / max(n_decided, 1),
        "alert_rate": None if bundle is None else int(n_by_decision[ALLOW + 1 :].sum()) / max(n_decided, 1),
        "alert_budget": policy.alert_budget,
    }


def show_deciders(counted: Json, screen: Screen) -> None:
    """Print what decides how often, and whether the alert budget holds with the rules."""
    n_events = counted["decision_events"]
    rows = [
        [escape(row["name"]), row["kind"], row["decision"], f"{row['events']:,}", f"{row['share']:.2%}"]
        for row in counted["decided_by"]
    ]
    rows.append([MODEL, "", "", f"{counted['model']:,}", f"{counted['model'] / max(n_events, 1):.2%}"])
    screen.table(
        f"What decides on {n_events:,} decision events", ["decided by", "", "decision", "events", "share"], rows
    )
    budget, by_rules, whole = counted["alert_budget"], counted["rules_alert_rate"], counted["alert_rate"]
    with_model = "" if whole is None else f"; with the model's {whole:.2%}"
    text = f"lists and rules alert {by_rules:.2%} of them{with_model}; policy.alert_budget = {budget:g}"
    if (by_rules if whole is None else whole) > budget:
        screen.warn(f"{text}: it bounds the model alone, on the validation period; what rules alert comes on top")
    else:
        screen.say(text)


def _decisions(
    events: Events, config: Config, policy: Policy, bundle: Bundle | None, tables: Tables
) -> Iterator[tuple[RuleArray, DecisionArray]]:
    """Yield (rule, decision) of some whole users at a time; without a bundle the model's own decisions are ALLOW."""
    if bundle is not None:
        for scored in score_log(replace(bundle.scorer, policy=policy), events, tables):
            yield scored.rule_N, scored.decision_N
        return
    spec, known = enrich_spec(config), subjects_of(config)
    for chunk in user_chunks(events):
        enriched, _ = enrich(chunk, empty_carry(chunk.n_users, spec), spec)
        verdicts = rule_verdicts(policy, enriched, risk_of(chunk, tables), known=known)
        by_model_N = np.where(decides(enriched, config), np.int8(ALLOW), np.int8(NO_DECISION))
        yield verdicts.rule_N, np.where(verdicts.rule_N == NO_RULE, by_model_N, verdicts.decision_N)
