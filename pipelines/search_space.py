"""Which settings `fraud tune` varies for each kind of scorer, and between what.

None of them shapes a prepared set: all trials train from the same one. The ranges were set once, around the defaults,
wide enough for logs of ten thousand events and of ten million; nobody's test period had a say in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from fraud.config import Config, config_to_toml, parse_config
from fraud.models import MODELS, FeatureModel, FusedModel

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Value = float | int


class Range(NamedTuple):
    """Numbers from low to high; even on a logarithmic scale where is_log."""

    low: Value
    high: Value
    is_log: bool = False


class Choice(NamedTuple):
    """One of a few numbers."""

    values: tuple[int, ...]


Space = Mapping[str, Range | Choice]  # by setting: "section.field"

_WIDTHS = (32, 64, 96, 128)
_NETWORK: Space = {
    "model.layers": Range(1, 3),
    "model.width": Choice(_WIDTHS),
    "training.learning_rate": Range(3e-4, 2e-2, is_log=True),
    "training.weight_decay": Range(1e-6, 1e-1, is_log=True),
    "training.dropout": Range(0.0, 0.4),
    "training.token_dropout": Range(0.0, 0.3),
    "training.batch_events": Choice((512, 1024, 2048, 4096)),
}
# The number of trees is found by early stopping; model.trees only bounds it.
_TREES: Space = {"model.trees": Range(100, 1000, is_log=True), "model.leaves": Range(7, 127, is_log=True)}


def search_space(config: Config) -> Space:
    """Return the settings to vary for the configured scorer; for a fused one those of all its members."""
    names = config.model.members if isinstance(MODELS[config.model.name], FusedModel) else (config.model.name,)
    space: dict[str, Range | Choice] = {}
    for name in names:
        space |= _TREES if isinstance(MODELS[name], FeatureModel) else _NETWORK
    if "transformer" in names:
        # Each head turns pairs of numbers; the number of heads stays the user's.
        widths = [width for width in _WIDTHS if width % (2 * config.model.heads) == 0]
        space["model.width"] = Choice(tuple(widths))
        if not widths:
            del space["model.width"]
    return space


def suggested(trial: Trial, space: Space) -> dict[str, Value]:
    """Return the settings of a trial."""
    return {setting: _suggest(trial, setting, one) for setting, one in space.items()}


def own_settings(config: Config, space: Space) -> dict[str, Value]:
    """Return what the configuration itself says of the settings that are varied."""
    return {setting: getattr(getattr(config, section), name) for setting, section, name in _parts(space)}


def within(settings: Mapping[str, Value], space: Space) -> dict[str, Value]:
    """Return those settings that the search could have suggested."""
    return {
        setting: value
        for setting, value in settings.items()
        if (value in one.values if isinstance(one := space[setting], Choice) else one.low <= value <= one.high)
    }


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the space in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for setting, one in space.items():
        if isinstance(one, Choice):
            found[setting] = CategoricalDistribution(one.values)
        elif isinstance(one.low, int) and isinstance(one.high, int):
            found[setting] = IntDistribution(one.low, one.high, log=one.is_log)
        else:
            found[setting] = FloatDistribution(one.low, one.high, log=one.is_log)
    return found


def with_settings(config: Config, settings: Mapping[str, Value]) -> Config:
    """Return the configuration with these settings, checked as a whole."""
    overrides = [f"{setting}={value!r}" for setting, value in settings.items()]
    return parse_config(config_to_toml(config), source="fraud tune", root=config.root, overrides=overrides)


def _suggest(trial: Trial, setting: str, one: Range | Choice) -> Value:
    if isinstance(one, Choice):
        return trial.suggest_categorical(setting, one.values)
    if isinstance(one.low, int) and isinstance(one.high, int):
        return trial.suggest_int(setting, one.low, one.high, log=one.is_log)
    # Four digits: what is written into the configuration is what was tried.
    return float(f"{trial.suggest_float(setting, one.low, one.high, log=one.is_log):.4g}")


def _parts(space: Space) -> list[tuple[str, str, str]]:
    return [(setting, *setting.split(".")) for setting in space]  # type: ignore[misc]  # each has one dot
