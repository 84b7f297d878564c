"""From a fitted model to a judged scorer: calibrate, set the policy, judge, bundle.

The choice between scorers looks at the first half of the validation users, calibration is fitted on the second, the
test period is touched once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from fraud.bundle import Bundle, BundleParts, write_bundle
from fraud.calibration import Calibration, fit_calibration
from fraud.chunks import labelled_chunks
from fraud.config import Config, read_lists, state_hash
from fraud.decisions import Policy, fit_policy
from fraud.errors import ConfigError, DataError
from fraud.events import FloatArray, IntArray
from fraud.instants import instant_text
from fraud.learning import FittedModel, fit_model
from fraud.logs import Log
from fraud.metrics import Examples, Metrics, average_precision, evaluate
from fraud.monitoring.reference import reference_json
from fraud.preparation import Prepared, Progress, prepare
from fraud.scoring import Scorer, risk_of
from fraud.splits import END_OF_TIME_US, supervise, time_cuts
from fraud.tables import tables_of

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A fitted model with its calibration, policy and figures. choice_ap: AP on the first half of validation users."""

    fitted: FittedModel
    calibration: Calibration
    policy: Policy
    choice_ap: float | None
    validation: Metrics
    test: Metrics
    test_examples: Examples


def train(log: Log, config: Config, directory: Path | str, *, progress: Progress | None = None) -> Bundle:
    """Return the bundle of one scorer trained on a log and written to `directory`, which must not exist.

    For notebooks; `fraud train` does the same with tracking and resume. Raises ConfigError and DataError.
    """
    with TemporaryDirectory(prefix="fraud-prepared-") as work:
        prepared = prepare(log, config, Path(work) / "set", progress=progress or _ignore)
        judged = judge(fit_model(prepared, config, resume=None, report=lambda _: None), prepared, config)
        return write_bundle(Path(directory), bundle_parts(judged, prepared, config, packages={}))


def judge(fitted: FittedModel, prepared: Prepared, config: Config) -> Judged:
    """Return the model with its calibration, policy and figures; the only place where test labels are read."""
    valid_V, test_T = np.flatnonzero(prepared.validates_N), np.flatnonzero(prepared.tests_N)
    label_V = prepared.label_N[valid_V]
    is_first_V = prepared.half_U[prepared.user_N[valid_V]] < 0.5
    # With hardly a fraud in the second half the whole period calibrates; nothing is chosen by a calibration.
    calibrates_V = ~is_first_V if (label_V[~is_first_V] == 1).any() else np.ones(len(valid_V), dtype=np.bool_)
    calibration = fit_calibration(fitted.validation_logit_V[calibrates_V], label_V[calibrates_V])
    choice_V = fitted.validation_logit_V if fitted.choice_logit_V is None else fitted.choice_logit_V
    validation = _examples(prepared, valid_V, calibration.scores(fitted.validation_logit_V), config)
    fitted_policy = fit_policy(validation.score_N, validation.amount_N, config=config.policy)
    policy = replace(fitted_policy, lists=read_lists(config), rules=config.policy.rules)
    test = _examples(prepared, test_T, calibration.scores(fitted.test_logit_T), config)
    return Judged(
        fitted=fitted,
        calibration=calibration,
        policy=policy,
        choice_ap=average_precision(choice_V[is_first_V], label_V[is_first_V]),
        validation=_figures(validation, policy, config),
        test=_figures(test, policy, config),
        test_examples=test,
    )


def scored_examples(scorer: Scorer, log: Log, config: Config, part: Part) -> Examples:
    """Return the examples of one part of a labelled log, scored as production would.

    Raises ConfigError without labels and for a scorer of another [log], [fields] or [sessions], DataError where the
    part has no example.
    """
    if config.labels is None:
        raise ConfigError("[labels] is missing: evaluation needs to know what is fraud")
    if state_hash(config) != state_hash(scorer.config):
        raise ConfigError(
            "the bundle was made for another [log], [fields] or [sessions] than this configuration declares; see the "
            f"config.toml of bundle {scorer.version}"
        )
    cuts = time_cuts(config.split, log.time_us)
    tables = tables_of(log, config)
    columns: dict[str, list[np.ndarray]] = {"score": [], "label": [], "user": [], "amount": []}
    n_users = 0
    for enriched, labels, known, part_N in labelled_chunks(log, config, as_of_us=cuts.as_of_us):
        assert labels is not None  # the configuration has labels
        assert known is not None
        supervision = supervise(enriched, labels, known, cuts, config, part_N)
        wanted_N = {"train": supervision.trains_N, "valid": supervision.validates_N, "test": supervision.tests_N}[part]
        events = enriched.events
        logit_N = scorer.model.logits(enriched, risk_of(events, tables), wanted_N=wanted_N)
        columns["score"].append(scorer.calibration.scores(logit_N[wanted_N]))
        columns["label"].append(supervision.label_N[wanted_N])
        columns["user"].append(events.user_codes()[wanted_N].astype(np.int64) + n_users)
        if events.amount is not None:
            columns["amount"].append(events.amount[wanted_N])
        n_users += events.n_users
    if not sum(len(column) for column in columns["score"]):
        raise DataError(f"the {part} part of the log has no labelled decision event")
    return Examples(
        score_N=np.concatenate(columns["score"]),
        label_N=np.concatenate(columns["label"]),
        user_N=np.concatenate(columns["user"]),
        amount_N=np.concatenate(columns["amount"]) if columns["amount"] else None,
    )


def bundle_parts(judged: Judged, prepared: Prepared, config: Config, *, packages: Mapping[str, str]) -> BundleParts:
    """Return what `write_bundle` writes for a judged model."""
    metrics: dict[str, Any] = {"test": judged.test.to_json(), "validation": judged.validation.to_json()}  # Any: JSON
    metrics |= {"choice_ap": judged.choice_ap, "periods": periods_of(prepared)}
    return BundleParts(
        name=judged.fitted.name,
        config=config,
        vocabulary=prepared.vocabulary,
        model_files=judged.fitted.model_files,
        calibration=judged.calibration,
        policy=judged.policy,
        reference=reference_json(
            prepared,
            config,
            judged.policy,
            validation_score_V=judged.calibration.scores(judged.fitted.validation_logit_V),
            test_score_T=judged.test_examples.score_N,
        ),
        metrics=metrics,
        model_card=_model_card(judged, prepared, config),
        fingerprint=prepared.fingerprint,
        newest_event=_instant(prepared.newest_event_us),
        newest_label=None if prepared.newest_label_us is None else _instant(prepared.newest_label_us),
        packages=packages,
    )


def periods_of(prepared: Prepared) -> dict[str, str] | None:
    """Return where training and validation ended and what was known when, RFC 3339; None where users are split."""
    cuts = prepared.cuts
    if cuts.valid_until_us == END_OF_TIME_US:
        return None
    times = {"train_until": cuts.train_until_us, "valid_until": cuts.valid_until_us, "as_of": cuts.as_of_us}
    return {name: instant_text(time_us) for name, time_us in times.items()}


def _examples(prepared: Prepared, rows_R: IntArray, score_R: FloatArray, config: Config) -> Examples:
    return Examples(
        score_N=score_R,
        label_N=prepared.label_N[rows_R],
        user_N=prepared.user_N[rows_R].astype(np.int64),
        amount_N=None if config.fields.amount is None else prepared.amount_N[rows_R],
    )


def _figures(examples: Examples, policy: Policy, config: Config) -> Metrics:
    return evaluate(
        examples,
        alert_budget=config.policy.alert_budget,
        threshold=policy.review_at,
        costs=policy.costs,
        seed=config.training.seed,
    )


def _model_card(judged: Judged, prepared: Prepared, config: Config) -> str:
    test = judged.test
    interval = "" if test.ap_ci is None else f" (95 % interval {test.ap_ci[0]:.3f} to {test.ap_ci[1]:.3f})"
    ap = "undefined" if test.ap is None else f"{test.ap:.3f}{interval}"
    return (
        f"# {judged.fitted.name}\n\n"
        f"Scores each event of a user with the probability of fraud, from at most {config.sessions.max_events} events "
        f"up to it.\n\n"
        f"- Made from {prepared.report['events']} events of {prepared.report['users']} users, the newest of "
        f"{_instant(prepared.newest_event_us)}.\n"
        f"- Average precision on the test period: {ap}; {test.n_positive} frauds among {test.n_test} examples.\n"
        f"- Reviewed from a score of {judged.policy.review_at:.4g}, blocked from {judged.policy.block_at:.4g}.\n"
        f"- Calibrated on {judged.calibration.n_positive} frauds and {judged.calibration.n_negative} other events "
        f"of the validation period.\n\n"
        f"Not for: users of another bank or another log, or types of event it has never seen; train it on your own.\n"
    )


def _instant(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")


def _ignore(_stage: str, _done: int, _all: int) -> None:
    return None
