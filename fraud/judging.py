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
from typing import Any

import numpy as np

from fraud.bundle import Bundle, BundleParts, write_bundle
from fraud.calibration import Calibration, fit_calibration
from fraud.config import Config, read_lists
from fraud.decisions import Policy, fit_policy
from fraud.events import FloatArray, IntArray
from fraud.learning import FittedModel, fit_model
from fraud.logs import Log
from fraud.metrics import Examples, Metrics, average_precision, evaluate
from fraud.preparation import Prepared, Progress, prepare


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


def bundle_parts(judged: Judged, prepared: Prepared, config: Config, *, packages: Mapping[str, str]) -> BundleParts:
    """Return what `write_bundle` writes for a judged model."""
    validation = judged.calibration.scores(judged.fitted.validation_logit_V)
    metrics = {"test": judged.test.to_json(), "validation": judged.validation.to_json(), "choice_ap": judged.choice_ap}
    return BundleParts(
        name=judged.fitted.name,
        config=config,
        vocabulary=prepared.vocabulary,
        model_files=judged.fitted.model_files,
        calibration=judged.calibration,
        policy=judged.policy,
        reference=_reference(prepared, validation),
        metrics=metrics,
        model_card=_model_card(judged, prepared, config),
        fingerprint=prepared.fingerprint,
        newest_event=_instant(prepared.newest_event_us),
        newest_label=None if prepared.newest_label_us is None else _instant(prepared.newest_label_us),
        packages=packages,
    )


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


def _reference(prepared: Prepared, validation_scores: FloatArray) -> dict[str, Any]:  # Any: JSON
    """Return what a monitor compares later logs with: percentiles of the score, and how often each id stands."""
    row_T = np.flatnonzero(prepared.in_training_N)
    histograms = {
        field.name: np.bincount(prepared.tokens_NF[row_T, f], minlength=field.size).tolist()
        for f, field in enumerate(prepared.vocabulary.fields)
    }
    percentiles = np.percentile(validation_scores, np.arange(101)).tolist()
    return {"score_percentiles": percentiles, "fields": histograms, "events": len(row_T)}


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
