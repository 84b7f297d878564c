"""From a prepared set to a judged scorer: fit, calibrate, set the policy, judge, bundle.

What is judged is what is promoted: validation and test logits come from the exported model through the functions that
score in production, not from torch or scikit-learn. The choice between scorers looks at the first half of the
validation users, calibration is fitted on the second, the test period is touched once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save as save_tensors

from fraud.batches import Windows, windows
from fraud.bundle import Bundle, BundleParts, write_bundle
from fraud.calibration import Calibration, fit_calibration
from fraud.config import Config
from fraud.decisions import Policy, fit_policy
from fraud.errors import ConfigError, DataError
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.labels import check_any_fraud
from fraud.logs import Log
from fraud.metrics import Examples, Metrics, average_precision, evaluate
from fraud.models import MODELS, FeatureModel, TokenModel
from fraud.preparation import Prepared, Progress, prepare
from fraud.runtime import TreeModel, WindowModel
from fraud.scoring import tree_logits, window_logits

if TYPE_CHECKING:
    from fraud.training import EpochReport, TrainingState

    Report = Callable[[EpochReport], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedModel:
    """A fitted model as the files of a bundle, and its logits: float64 of the validation and test examples, by row."""

    name: str
    model_files: Mapping[str, bytes]
    validation_logit_V: FloatArray
    test_logit_T: FloatArray


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


def fit_model(prepared: Prepared, config: Config, *, resume: TrainingState | None, report: Report) -> FittedModel:
    """Return the model that the configuration names, fitted on the training period and exported.

    report is called after each epoch of a network. Raises ConfigError for a model that does not exist, DataError where
    a period has no known fraud.
    """
    if config.model.name not in MODELS:
        raise ConfigError(f"model.name = {config.model.name!r}: no such model; known here: {', '.join(sorted(MODELS))}")
    for rows_N, period in (
        (prepared.trains_N, "the training period"),
        (prepared.validates_N, "the validation period (what was known at its end)"),
    ):
        check_any_fraud(int((prepared.label_N[rows_N] == 1).sum()), period)
    if not prepared.tests_N.any():
        raise DataError("the test period holds no labelled decision event: nothing could be judged (check [split])")
    model = MODELS[config.model.name]
    if isinstance(model, TokenModel):
        return _fit_network(model, prepared, config, resume=resume, report=report)
    return _fit_trees(model, prepared, config)


def judge(fitted: FittedModel, prepared: Prepared, config: Config) -> Judged:
    """Return the model with its calibration, policy and figures; the only place where test labels are read."""
    valid_V, test_T = np.flatnonzero(prepared.validates_N), np.flatnonzero(prepared.tests_N)
    label_V = prepared.label_N[valid_V]
    is_first_V = prepared.half_U[prepared.user_N[valid_V]] < 0.5
    # With hardly a fraud in the second half the whole period calibrates; nothing is chosen by a calibration.
    calibrates_V = ~is_first_V if (label_V[~is_first_V] == 1).any() else np.ones(len(valid_V), dtype=np.bool_)
    calibration = fit_calibration(fitted.validation_logit_V[calibrates_V], label_V[calibrates_V])
    validation = _examples(prepared, valid_V, calibration.scores(fitted.validation_logit_V), config)
    policy = fit_policy(validation.score_N, validation.amount_N, config=config.policy)
    test = _examples(prepared, test_T, calibration.scores(fitted.test_logit_T), config)
    return Judged(
        fitted=fitted,
        calibration=calibration,
        policy=policy,
        choice_ap=average_precision(fitted.validation_logit_V[is_first_V], label_V[is_first_V]),
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


def _fit_network(
    model: TokenModel, prepared: Prepared, config: Config, *, resume: TrainingState | None, report: Report
) -> FittedModel:
    # torch loads in a second or two; a process that only scores must not pay for it.
    from fraud.export import step_onnx, window_onnx
    from fraud.training import TrainingSet, best_network, fit

    chosen = _windows(prepared, config)
    held_out_N = _held_out(prepared, config)
    training_set = TrainingSet(
        tokens_NF=prepared.tokens_NF,
        windows=chosen,
        label_N=prepared.label_N,
        trained_N=prepared.trains_N & ~held_out_N,
        held_out_N=prepared.trains_N & held_out_N,
    )
    base_rate = float(np.clip(prepared.label_N[prepared.trains_N].mean(), 1e-6, 0.5))
    network = model.build(
        prepared.vocabulary.field_shapes,
        config.model,
        dropout=config.training.dropout,
        base_rate=base_rate,
        seed=config.training.seed,
    )
    state = resume
    for epoch in fit(network, training_set, config.training, resume=resume):
        state = epoch.state
        report(epoch)
    assert state is not None  # there is at least one epoch
    weights = {name: tensor.numpy() for name, tensor in best_network(network, state).state_dict().items()}
    field_sizes = prepared.vocabulary.field_sizes
    files = {
        "weights.safetensors": save_tensors(weights),
        "window.onnx": window_onnx(weights, field_sizes),
        "step.onnx": step_onnx(weights, field_sizes),
    }
    scored_N = prepared.validates_N | prepared.tests_N
    logit_N = window_logits(
        WindowModel(files["window.onnx"], threads=config.training.threads),
        prepared.tokens_NF,
        _holding(chosen, scored_N),
    )
    return FittedModel(
        name=config.model.name,
        model_files=files,
        validation_logit_V=logit_N[prepared.validates_N],
        test_logit_T=logit_N[prepared.tests_N],
    )


def _fit_trees(model: FeatureModel, prepared: Prepared, config: Config) -> FittedModel:
    from fraud.models.boosting import FeatureRows, boosting_onnx

    row_R, rate = prepared.feature_row_R, config.training.negative_rate
    label_R = prepared.label_N[row_R]
    rng = np.random.default_rng([config.training.seed, 7])
    is_kept_R = (label_R == 1) | (rng.random(len(row_R)) < rate)
    trains_R = prepared.trains_N[row_R] & is_kept_R
    held_out_R = _held_out(prepared, config)[row_R]

    def rows(wanted_R: BoolArray) -> FeatureRows:
        places = np.flatnonzero(wanted_R)
        return FeatureRows(features_RC=np.ascontiguousarray(prepared.features_RC[places]), label_R=label_R[places])

    trees = model.fit(
        rows(trains_R & ~held_out_R),
        rows(trains_R & held_out_R),
        model=config.model,
        training=config.training,
        log_odds_shift=math.log(rate),
    )
    content = boosting_onnx(trees)
    runtime = TreeModel(content, threads=config.training.threads)
    return FittedModel(
        name=config.model.name,
        model_files={"boosting.onnx": content},
        validation_logit_V=tree_logits(runtime, prepared.features_RC, np.flatnonzero(prepared.validates_N[row_R])),
        test_logit_T=tree_logits(runtime, prepared.features_RC, np.flatnonzero(prepared.tests_N[row_R])),
    )


def _windows(prepared: Prepared, config: Config) -> Windows:
    starts_S1 = np.asarray(prepared.sequence_starts_S1)
    return windows(starts_S1, np.zeros(len(starts_S1) - 1, dtype=np.int64), config.sessions.max_events)


def _holding(chosen: Windows, wanted_N: BoolArray) -> Windows:
    """Return the windows in which a wanted row counts."""
    total_N1 = np.concatenate([[0], np.cumsum(wanted_N)])
    first_W, last_W = chosen.starts_W + chosen.scored_from_W, chosen.starts_W + chosen.lengths_W
    return chosen.take(np.flatnonzero(total_N1[last_W] > total_N1[first_W]))


def _held_out(prepared: Prepared, config: Config) -> BoolArray:
    return (prepared.held_out_U < config.training.held_out)[prepared.user_N]


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
