"""Which scorers there are: one line each in MODELS.

Importing this file imports neither torch nor scikit-learn: an entry holds a function that imports what it needs when it
is called, so that a command line starts fast and a server that only scores never loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fraud.config import ModelConfig, TrainingConfig
from fraud.tokens import FieldShape

if TYPE_CHECKING:
    from fraud.models.boosting import FeatureRows, Trees
    from fraud.models.recurrent import Recurrent


class BuildNetwork(Protocol):
    """Return an untrained network for tokens of these fields; base_rate sets its first answer."""

    def __call__(
        self, fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float, base_rate: float, seed: int
    ) -> Recurrent: ...


class FitTrees(Protocol):
    """Return trees fitted on `rows`, stopped early on `held_out`; log_odds_shift is added to every logit."""

    def __call__(
        self,
        rows: FeatureRows,
        held_out: FeatureRows,
        *,
        model: ModelConfig,
        training: TrainingConfig,
        log_odds_shift: float,
    ) -> Trees: ...


@dataclass(frozen=True, slots=True)
class TokenModel:
    """A network that reads token windows: `build`, then `fraud.training.fit`."""

    build: BuildNetwork


@dataclass(frozen=True, slots=True)
class FeatureModel:
    """Trees that read one row of features per event: `fit` is all."""

    fit: FitTrees


def _build_lstm(
    fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float, base_rate: float, seed: int
) -> Recurrent:
    from fraud.models.recurrent import build_recurrent

    return build_recurrent(fields, model, dropout=dropout, base_rate=base_rate, seed=seed)


def _fit_boosting(
    rows: FeatureRows, held_out: FeatureRows, *, model: ModelConfig, training: TrainingConfig, log_odds_shift: float
) -> Trees:
    from fraud.models.boosting import fit_trees

    return fit_trees(rows, held_out, model=model, training=training, log_odds_shift=log_odds_shift)


MODELS: Mapping[str, TokenModel | FeatureModel] = {
    "boosting": FeatureModel(_fit_boosting),
    "lstm": TokenModel(_build_lstm),
}
