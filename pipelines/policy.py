"""`fraud policy`: are the lists and rules of a configuration what they should be, and a bundle with other ones.

`test` runs [[policy.tests]] and counts on a log what would decide how often; `apply` writes a bundle anew with the
lists and rules of a configuration: they change by the day, a model by the month.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape

from fraud.bundle import Bundle, BundleParts, load_bundle, write_bundle
from fraud.columns import declared_columns
from fraud.config import Config, read_lists, subjects_of
from fraud.decisions import DECISIONS, Policy, decide, policy_version
from fraud.enrich import empty_carry, enrich
from fraud.entities import RISK_NAMES
from fraud.errors import ConfigError
from fraud.events import Events
from fraud.logs import read_log
from fraud.manifest import MANIFEST, read_files
from fraud.rules import MODEL, PolicyTest
from fraud.scoring import Tables, enrich_spec, risk_of
from fraud.splits import decides
from fraud.tables import scoring_config, tables_of
from fraud.verdicts import NO_RULE, rule_verdicts
from pipelines.console import Screen
from pipelines.files import check_new, only_one, replace_directory
from pipelines.policy_counts import count_deciders, show_deciders
from pipelines.score import log_config

Json = dict[str, Any]  # Any: JSON
_USER = "somebody"  # of a test whose events name no user
_UNFITTED = 1.0  # a threshold that no score reaches: without a bundle nobody knows what the model decides


class _Outcome(NamedTuple):
    """What was decided on the last event of a test. decision: None where none is made, or nobody knows; text: why."""

    decision: str | None
    by: str | None
    text: str


def run_policy_tests(config: Config, *, bundle: Path | None, events: str | None, screen: Screen) -> Json:
    """Return the outcome of each of [[policy.tests]] and, with a log, how often each list and rule would decide on it.

    bundle: whose thresholds turn a score into the model's decision, and whose scores the log gets; without one it is
    only known THAT the model decides. Raises ConfigError, DataError and BundleError.
    """
    loaded = None if bundle is None else load_bundle(bundle)
    policy = _policy(config, loaded)
    document: Json = {"policy_version": None if loaded is None else policy_version(policy)}
    document |= _tested(config, policy, has_model=loaded is not None)
    _show_tests(document, screen)
    if events is not None:
        document["log"] = count_deciders(config, policy, loaded, events)
        show_deciders(document["log"], screen)
    return document


def apply_policy(directory: Path, config: Config, out: Path, *, overwrite: bool, screen: Screen) -> Json:
    """Return what the bundle written to `out` holds: the bundle of a directory with a configuration's lists and rules.

    The model, its calibration and the thresholds stay. Raises ConfigError where a policy test of the configuration
    fails, BundleError and what `write_bundle` raises.
    """
    check_new(out, overwrite=overwrite, mark=MANIFEST)
    bundle = load_bundle(directory)
    policy = _policy(config, bundle)
    failed = _tested(config, policy, has_model=True)["failed"]
    if failed:
        raise ConfigError(f"{failed} of {len(config.policy.tests)} policy tests fail; `fraud policy test` shows which")
    own = replace(
        bundle.scorer.config.policy,
        lists=config.policy.lists,
        rules=config.policy.rules,
        tests=config.policy.tests,
    )
    aside = out.with_name(f".{out.name}.new")
    with only_one(aside):
        written = write_bundle(aside, _parts(bundle, replace(bundle.scorer.config, policy=own), policy))
        replace_directory(aside, out)
    n_lists, n_rules = len(policy.lists), len(policy.rules)
    version = policy_version(policy)
    screen.say(f"{n_lists} lists and {n_rules} rules before the model, policy {version} -> {out}")
    return {
        "bundle": str(out),
        "version": written.version,
        "before": bundle.version,
        "policy_version": version,
        "lists": n_lists,
        "rules": n_rules,
    }


def _policy(config: Config, bundle: Bundle | None) -> Policy:
    """Return the thresholds of the bundle with the lists and rules of the configuration."""
    lists, rules = read_lists(config), config.policy.rules
    if bundle is None:
        return Policy(
            review_at=_UNFITTED,
            block_at=_UNFITTED,
            alert_budget=config.policy.alert_budget,
            block_budget=config.policy.block_budget,
            costs=None,
            lists=lists,
            rules=rules,
        )
    log_config(bundle, config)  # refuses another log than the bundle's
    if config.decisions != bundle.scorer.config.decisions:
        raise ConfigError(f"[decisions] is not that of the bundle; see {bundle.path / 'config.toml'}")
    return replace(bundle.scorer.policy, lists=lists, rules=rules)


def _parts(bundle: Bundle, config: Config, policy: Policy) -> BundleParts:
    files = read_files(bundle.path, bundle.manifest)
    manifest = bundle.manifest
    return BundleParts(
        name=manifest.name,
        config=config,
        vocabulary=bundle.scorer.model.vocabulary,
        model_files={
            name: content
            for name, content in files.items()
            if name.endswith((".onnx", ".safetensors")) or name == "fusion.json"
        },
        calibration=bundle.scorer.calibration,
        policy=policy,
        reference=bundle.reference,
        metrics=bundle.metrics,
        model_card=files["MODEL_CARD.md"].decode("utf-8"),
        fingerprint=manifest.fingerprint,
        newest_event=manifest.newest_event,
        newest_label=manifest.newest_label,
        packages=manifest.packages,
    )


def _tested(config: Config, policy: Policy, *, has_model: bool) -> Json:
    tests: list[Json] = []
    for place, test in enumerate(config.policy.tests):
        found = _outcome(test, place, config, policy, has_model=has_model)
        passed = test.expect in (None, found.decision) and test.by in (None, found.by)
        tests.append(
            {
                "test": test.name or f"test {place + 1}",
                "passed": passed,
                "decision": found.decision,
                "by": found.by,
                "expected": test.expect,
                "expected_by": test.by,
                "text": found.text,
            }
        )
    n_passed = sum(test["passed"] for test in tests)
    return {"tests": tests, "passed": n_passed, "failed": len(tests) - n_passed}


def _outcome(test: PolicyTest, place: int, config: Config, policy: Policy, *, has_model: bool) -> _Outcome:
    """Return what is decided on the last event of a test, as `fraud.scoring.decided` would, its score given."""
    spec = enrich_spec(config)
    events, tables = _read(test, f"policy.tests.{place}.events", config)
    enriched, _ = enrich(events, empty_carry(1, spec), spec)
    risk = dict(risk_of(events, tables))
    for field, facts in test.risk.items():
        for name, number in facts.items():
            risk[field][-1, RISK_NAMES.index(name)] = number
    verdicts = rule_verdicts(policy, enriched, risk, known=subjects_of(config))
    rule = int(verdicts.rule_N[-1])
    if rule != NO_RULE:
        decided = policy.in_order[rule]
        return _Outcome(decided.decision, decided.name, decided.text)
    if not decides(enriched, config)[-1]:
        return _Outcome(None, None, "no decision is made on the last event; see [decisions]")
    if not has_model:
        return _Outcome(None, MODEL, "--bundle BUNDLE knows what the model makes of a score")
    if test.score is None:
        return _Outcome(None, MODEL, "the test gives no score")
    amount_N = None if events.amount is None else events.amount[-1:]
    code = int(decide(policy, np.array([test.score]), amount_N=amount_N)[0])
    return _Outcome(DECISIONS[code], MODEL, f"score {test.score:g}")


def _read(test: PolicyTest, where: str, config: Config) -> tuple[Events, Tables]:
    """Return the events of a test as a log of just them is read, and the counters of their entities."""
    read_with = scoring_config(config, labels=None)
    log = config.log
    given: dict[str | None, object] = {log.user: _USER, log.session: "a session"}
    blank = {column.column: None for column in declared_columns(read_with)}
    blank |= {name: value for name, value in given.items() if name in blank}
    lines: list[str] = []
    for number, event in enumerate(test.events):
        own = {log.event_id: str(number), log.order: number}
        lines.append(json.dumps({**blank, **{n: v for n, v in own.items() if n in blank}, **event}))
    with TemporaryDirectory(prefix="fraud-policy-") as folder:
        path = Path(folder) / "events.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with closing(read_log(read_with, events=str(path))) as read:
            if len(read.quarantine):
                row = read.quarantine.table().slice(0, 1).to_pylist()[0]
                raise ConfigError(f"{where}.{row['row']}.{row['column']} = {row['value']!r}: {row['text']}")
            if read.n_users != 1:
                raise ConfigError(f"{where}: {read.n_users} users; expected the events of one")
            return read.partitions[0]().events, tables_of(read, read_with)


def _show_tests(document: Json, screen: Screen) -> None:
    if not document["tests"]:
        screen.warn("the configuration has no [[policy.tests]]; nothing was tested")
        return
    rows = [
        [
            escape(test["test"]),
            "pass" if test["passed"] else "FAIL",
            _said(test["expected"], test["expected_by"]),
            _said(test["decision"], test["by"]),
            escape(test["text"]),
        ]
        for test in document["tests"]
    ]
    screen.table("Policy tests", ["test", "", "expected", "decided", "why"], rows)
    screen.say(f"{document['passed']} passed, {document['failed']} failed")


def _said(decision: str | None, by: str | None) -> str:
    """Return "block by known_mules"; a part that is not said is left out."""
    return escape(" ".join([decision or "", f"by {by}" if by else ""]).strip() or "no decision")
