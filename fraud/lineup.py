"""Who takes part in a comparison: the named scorers, what a fused one stacks, and the configuration of each fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fraud.config import Config, config_to_toml, parse_config
from fraud.errors import ConfigError
from fraud.learning import FittedModel, check_members, fit_fused, fit_model
from fraud.models import MODELS, FusedModel, check_names
from fraud.preparation import Prepared

DEFAULT_MODELS = ("average", "boosting", "lstm", "transformer", "fused")


class Lineup(NamedTuple):
    """names: the scorers of the leaderboard, in order. fitted: those that are trained. members: what fused stacks."""

    names: tuple[str, ...]
    fitted: tuple[str, ...]
    members: tuple[str, ...]


def lineup_of(names: Sequence[str], config: Config, *, seeds: int) -> Lineup:
    """Return what is trained for the named scorers: fused stacks the others, or [model] members where it is alone.

    Raises ConfigError for a name that does not exist or stands twice, and for a fused scorer of fewer than two.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: expected 1 or more")
    if not names:
        raise ConfigError(f"--models: expected at least one of {', '.join(sorted(MODELS))}")
    check_names(names, "--models")
    for name in names:
        if list(names).count(name) > 1:
            raise ConfigError(f"--models: {name!r} stands twice; each scorer is compared once")
    others = tuple(name for name in names if not isinstance(MODELS[name], FusedModel))
    members: tuple[str, ...] = ()
    if len(others) < len(names):
        members = others or config.model.members
        check_members(members)
    lineup = Lineup(tuple(names) if others else (*members, *names), others or members, members)
    for name in lineup.names:
        scorer_config(config, name, members, 0)
    return lineup


def scorer_config(config: Config, name: str, members: Sequence[str], nth_seed: int) -> Config:
    """Return the configuration of one fit, checked as a whole: nth_seed counts from the configuration's own seed.

    model.causal = false is the transformer's alone. Raises ConfigError for settings that do not go with that scorer.
    """
    overrides = [f'model.name="{name}"', f"training.seed={config.training.seed + nth_seed}"]
    overrides += [] if name == "transformer" else ["model.causal=true"]
    if isinstance(MODELS[name], FusedModel):
        overrides.append(f"model.members={list(members)!r}")
    return parse_config(config_to_toml(config), source=f"--models {name}", root=config.root, overrides=overrides)


def fits_of(prepared: Prepared, lineup: Lineup, config: Config, nth_seed: int) -> dict[str, FittedModel]:
    """Return one fit of each scorer of the lineup."""

    def chosen(name: str) -> Config:
        return scorer_config(config, name, lineup.members, nth_seed)

    fits = {
        name: fit_model(prepared, chosen(name), resume=None, report=lambda _: None)
        for name in dict.fromkeys((*lineup.fitted, *lineup.members))
    }
    for name in lineup.names:
        if name not in fits:
            fits[name] = fit_fused({member: fits[member] for member in lineup.members}, prepared, chosen(name))
    return fits
