"""From a prepared set to a fitted model: its files, and its logits of the validation and the test period.

What is judged is what is promoted: the logits come from the exported model through the functions that score in
production, not from torch or scikit-learn. `fraud.judging` makes figures of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save as save_tensors

from fraud.batches import Windows, context_windows
from fraud.config import Config
from fraud.errors import ConfigError, DataError
from fraud.events import BoolArray, FloatArray
from fraud.labels import check_any_fraud
from fraud.manifest import MEMBERS
from fraud.models import MODELS, FeatureModel, FusedModel, TokenModel, check_names
from fraud.models.fusion import N_FOLDS, cross_fitted, fit_fusion
from fraud.preparation import Prepared, without_test
from fraud.runtime import TreeModel, WindowModel
from fraud.scoring import holding, tree_logits, window_logits

if TYPE_CHECKING:
    from fraud.training import EpochReport, TrainingState

    Report = Callable[[EpochReport], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedModel:
    """A fitted model as the files of a bundle, and its logits: float64 of the validation and test examples, by row.

    choice_logit_V: what a choice between scorers may look at, where that is not validation_logit_V: of a stack, logits
    from weights that the event's user had no part in.
    """

    name: str
    model_files: Mapping[str, bytes]
    validation_logit_V: FloatArray
    test_logit_T: FloatArray
    choice_logit_V: FloatArray | None = None


def fit_model(prepared: Prepared, config: Config, *, resume: TrainingState | None, report: Report) -> FittedModel:
    """Return the model that the configuration names, fitted on the training period and exported.

    report is called after each epoch of a network. Raises ConfigError for a model that does not exist, DataError where
    a period has no known fraud.
    """
    check_names([config.model.name], "model.name")
    check_periods(prepared)
    return _fit(prepared, config, resume=resume, report=report)


def fit_for_choice(prepared: Prepared, config: Config, *, report: Report) -> FittedModel:
    """Return the model that the configuration names as `fit_model` fits it, without a look at the test period.

    Its test_logit_T is empty. Raises ConfigError for a model that does not exist, DataError where a period that is
    looked at has no known fraud.
    """
    check_names([config.model.name], "model.name")
    check_learnable(prepared)
    return _fit(without_test(prepared), config, resume=None, report=report)


def _fit(prepared: Prepared, config: Config, *, resume: TrainingState | None, report: Report) -> FittedModel:
    model = MODELS[config.model.name]
    if isinstance(model, TokenModel):
        return _fit_network(prepared, config, resume=resume, report=report)
    if isinstance(model, FeatureModel):
        return _fit_trees(model, prepared, config)
    check_members(config.model.members)
    members = {
        name: _fit(prepared, member_config(config, name), resume=None, report=report) for name in config.model.members
    }
    return fit_fused(members, prepared, config)


def check_periods(prepared: Prepared) -> None:
    """Raise DataError where nothing can be learned, or nothing judged: no fraud is known in time, no test example."""
    check_learnable(prepared)
    if not prepared.tests_N.any():
        raise DataError("the test period holds no labelled decision event: nothing could be judged (check [split])")


def check_learnable(prepared: Prepared) -> None:
    """Raise DataError where nothing can be learned: no fraud is known in time."""
    for rows_N, period in (
        (prepared.trains_N, "the training period"),
        (prepared.validates_N, "the validation period (what was known at its end)"),
    ):
        n_fraud = int((prepared.label_N[rows_N] == 1).sum())
        n_labels = int(prepared.report.get("labels", 0))
        if n_fraud == 0 and n_labels:
            raise DataError(
                f"{period} holds no known fraud, though {n_labels} rows of labels came in; expected at least one that "
                "was known in time (check labels.known_at and labels.delay, then [split])"
            )
        check_any_fraud(n_fraud, period)


def check_members(names: Sequence[str]) -> None:
    """Raise ConfigError where these scorers cannot be stacked: a fused scorer needs two or more others, once each."""
    check_names(names, "model.members")
    if len(names) < 2 or len(set(names)) != len(names) or any(isinstance(MODELS[name], FusedModel) for name in names):
        raise ConfigError(f"model.members = {list(names)}: a fused scorer stacks two or more other scorers, once each")


def member_config(config: Config, name: str) -> Config:
    """Return the configuration that trains one member of a fused scorer."""
    return replace(config, model=replace(config.model, name=name))


def fit_fused(members: Mapping[str, FittedModel], prepared: Prepared, config: Config) -> FittedModel:
    """Return the stack of fitted members, its weights fitted on the first half of the validation users.

    Raises ConfigError for fewer than two members, DataError where that half holds one class only.
    """
    names = tuple(members)
    check_members(names)
    valid_V = np.flatnonzero(prepared.validates_N)
    share_V, label_V = prepared.half_U[prepared.user_N[valid_V]], prepared.label_N[valid_V]
    is_first_V = share_V < 0.5
    logit_VM = np.stack([one.validation_logit_V for one in members.values()], axis=1)
    fusion = fit_fusion(names, logit_VM[is_first_V], label_V[is_first_V])
    fold_V = np.floor(share_V * 2 * N_FOLDS).astype(np.int64)
    choice_V = fusion.logits(logit_VM)
    choice_V[is_first_V] = cross_fitted(names, logit_VM[is_first_V], label_V[is_first_V], fold_V[is_first_V])
    files = {"fusion.json": fusion.to_json().encode()}
    for name, one in members.items():
        files |= {f"{MEMBERS}/{name}/{file}": content for file, content in one.model_files.items()}
    return FittedModel(
        name="fused",
        model_files=files,
        validation_logit_V=fusion.logits(logit_VM),
        test_logit_T=fusion.logits(np.stack([one.test_logit_T for one in members.values()], axis=1)),
        choice_logit_V=choice_V,
    )


def _fit_network(prepared: Prepared, config: Config, *, resume: TrainingState | None, report: Report) -> FittedModel:
    # torch loads in a second or two; a process that only scores must not pay for it.
    from fraud.models.network import build_network, export_network, weights_of
    from fraud.pretraining import pretrained
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
    network = build_network(
        prepared.vocabulary.field_shapes,
        config.model,
        dropout=config.training.dropout,
        base_rate=base_rate,
        seed=config.training.seed,
    )
    if config.training.pretrain != "none":
        unlabelled = replace(
            training_set,
            label_N=np.zeros_like(prepared.label_N),
            trained_N=prepared.in_training_N & ~held_out_N,
            held_out_N=prepared.in_training_N & held_out_N,
        )
        network, resume = pretrained(network, unlabelled, config.training, resume=resume, report=report)
    state = resume
    for epoch in fit(network, training_set, config.training, resume=resume):
        state = epoch.state
        report(epoch)
    assert state is not None  # there is at least one epoch
    weights = weights_of(best_network(network, state))
    files = {
        "weights.safetensors": save_tensors(weights),
        **export_network(weights, prepared.vocabulary.field_shapes, config.model),
    }
    scored_N = prepared.validates_N | prepared.tests_N
    logit_N = window_logits(
        WindowModel(files["window.onnx"], threads=config.training.threads),
        prepared.tokens_NF,
        holding(chosen, scored_N),
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
    first_S = np.zeros(len(starts_S1) - 1, dtype=np.int64)
    return context_windows(starts_S1, first_S, config.sessions.max_events, causal=config.model.causal)


def _held_out(prepared: Prepared, config: Config) -> BoolArray:
    return (prepared.held_out_U < config.training.held_out)[prepared.user_N]
