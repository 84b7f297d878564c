"""Which scorers there are: one line each in MODELS.

Importing this file imports neither torch nor scikit-learn: an entry names what to import when it is needed, so that a
command line starts fast and a server that only scores never loads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fraud.config import ModelConfig, TrainingConfig
from fraud.errors import ConfigError

if TYPE_CHECKING:
    from fraud.models.boosting import FeatureRows, Trees


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
    """A network that reads token windows; `module` is its file, with `build_encoder` (`fraud.models.network`)."""

    module: str


@dataclass(frozen=True, slots=True)
class FeatureModel:
    """Trees that read one row of features per event: `fit` is all."""

    fit: FitTrees


@dataclass(frozen=True, slots=True)
class FusedModel:
    """A stack of other scorers (`fraud.models.fusion`)."""


def _fit_boosting(
    rows: FeatureRows, held_out: FeatureRows, *, model: ModelConfig, training: TrainingConfig, log_odds_shift: float
) -> Trees:
    from fraud.models.boosting import fit_trees

    return fit_trees(rows, held_out, model=model, training=training, log_odds_shift=log_odds_shift)


MODELS: Mapping[str, TokenModel | FeatureModel | FusedModel] = {
    "average": TokenModel("fraud.models.average"),
    "boosting": FeatureModel(_fit_boosting),
    "fused": FusedModel(),
    "gru": TokenModel("fraud.models.recurrent"),
    "lstm": TokenModel("fraud.models.recurrent"),
    "rnn": TokenModel("fraud.models.recurrent"),
    "transformer": TokenModel("fraud.models.transformer"),
}


def check_names(names: Iterable[str], setting: str) -> None:
    """Raise ConfigError that lists the known models where one of the names is not among them."""
    for name in names:
        if name not in MODELS:
            raise ConfigError(f"{setting} = {name!r}: no such model; known here: {', '.join(sorted(MODELS))}")


def token_model(name: str) -> TokenModel:
    """Return the entry of a network; raise ConfigError for any other name."""
    check_names([name], "model.name")
    model = MODELS[name]
    if not isinstance(model, TokenModel):
        networks = sorted(known for known, entry in MODELS.items() if isinstance(entry, TokenModel))
        raise ConfigError(f"model.name = {name!r}: not a network; expected one of {', '.join(networks)}")
    return model
