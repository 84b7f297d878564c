"""`fraud tune`: settings searched on the training and the validation period; a killed search goes on with --resume.

A trial is judged by the average precision on the first half of the validation users: the very figure that scorers are
chosen by, of a time after training, and no early stopping has looked at it. (The held-out loss ends fits and hopeless
trials; what ended a fit is no fair judge of it.) The other half, which nothing is chosen by, shows how much of the best
figure of many is luck. The test period is not there at all: its labels are masked, its scores never computed.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fraud.config import Config, config_to_toml, parse_config
from fraud.errors import ConfigError, FraudError
from fraud.learning import check_learnable
from fraud.metrics import PairedDifference
from fraud.models import check_names
from fraud.preparation import Prepared, without_test
from fraud.rules import ListFile
from pipelines.console import Screen, spoken_s
from pipelines.files import check_output, written_whole
from pipelines.records import RunRecord
from pipelines.search_space import Value, search_space, with_settings
from pipelines.tracking import track_parent
from pipelines.train import discard, parameters_of, prepared_for
from pipelines.trials import Done, best_of, halves_of, read_logits, run_trials
from pipelines.tuning_picture import tuning_picture

Json = dict[str, Any]  # Any: JSON
_SHOWN = 5
_SQLITE = "sqlite:///"


class Tuned(NamedTuple):
    """own: the user's own settings; best: the winner, which may be them.

    gain: AP of the winner minus AP of the user's own settings on the half that chose it, other_gain on the other one;
    None where there is no difference to speak of.
    """

    trials: tuple[Done, ...]
    own: Done
    best: Done
    gain: PairedDifference | None
    other_gain: PairedDifference | None

    @property
    def changed(self) -> dict[str, tuple[Value, Value]]:
        """Return the settings that differ: by name, the user's own and the winner's."""
        before, after = self.own.settings, self.best.settings
        return {name: (before[name], value) for name, value in after.items() if value != before[name]}


def tune(
    config: Config, out: Path, *, trials: int, command: Sequence[str], overwrite: bool, resume: bool, screen: Screen
) -> Json:
    """Return what the trials gave; `out` is then a configuration with the settings that won, beside it a picture.

    command: what the user typed, for the head of the file. Raises ConfigError, DataError; a search that was killed
    leaves its working folder, which --resume takes up.
    """
    started = time.monotonic()
    work = out.with_name(f".{out.name}.work")
    check_output(out, work, overwrite=overwrite, resume=resume)
    check_output(out.with_suffix(".png"), work, overwrite=overwrite, resume=resume)
    _check(config, out, trials=trials)
    if not resume:
        discard(work)
    try:
        prepared = without_test(prepared_for(config, work, screen))
        check_learnable(prepared)
        done = run_trials(prepared, config, work, trials=trials, screen=screen)
    except FraudError:
        # Nothing to take up: what was asked for cannot be done. What an earlier run left stays, for a mended call.
        if not resume:
            discard(work)
        raise
    tuned = _compared(done, prepared, config, work)
    best = with_settings(config, tuned.best.settings)
    picture = out.with_suffix(".png")
    with written_whole(picture) as aside:
        aside.write_bytes(tuning_picture(done, tuned.best, search_space(config)))
    with written_whole(out) as aside:
        aside.write_text(_file(best, tuned, out, command), encoding="utf-8")
    record = _record(tuned, best, prepared)
    run_id = track_parent(record, [out, picture], best, screen, keep_as=out.with_suffix(""))
    _show(tuned, out, picture, screen)
    discard(work)
    return _document(tuned) | {
        "model": config.model.name,
        "config": str(out),
        "picture": str(picture),
        "tracked": run_id,
        "seconds": round(time.monotonic() - started, 1),
    }


def _check(config: Config, out: Path, *, trials: int) -> None:
    if out.suffix != ".toml":
        raise ConfigError(f"{out}: expected a name that ends in .toml")
    if trials < 2:
        raise ConfigError(f"--trials {trials}: expected 2 or more; the first one is your own settings")
    check_names([config.model.name], "model.name")
    if config.labels is None:
        raise ConfigError("[labels] is missing: a search needs to know what is fraud")


def _compared(done: tuple[Done, ...], prepared: Prepared, config: Config, work: Path) -> Tuned:
    own, best = done[0], best_of(done)
    if best is own:
        return Tuned(done, own, best, None, None)
    best_V, own_V, halves = read_logits(work, best.number), read_logits(work, own.number), halves_of(prepared)
    gains = [halves.gain(best_V, own_V, first=first, seed=config.training.seed) for first in (True, False)]
    return Tuned(done, own, best, *gains)


def _file(best: Config, tuned: Tuned, out: Path, command: Sequence[str]) -> str:
    """Return the text of the configuration with the settings that won, and above it where they come from."""
    typed = shlex.join(command)
    head = [
        f"Found by: {typed if typed.isprintable() else repr(typed)}",
        *_verdict(tuned),
        "The test period had no part in it. Every setting is written out; the comments of your own file are not.",
        f"Train with it: fraud train {shlex.quote(str(out)) if str(out).isprintable() else repr(str(out))} -o bundle",
    ]
    moved = _moved(best, out)
    text = "".join(f"# {line}\n" for line in head) + "\n" + config_to_toml(moved)
    # What is written is what was meant.
    assert parse_config(text, source=str(out), root=moved.root) == moved
    return text


def _moved(config: Config, out: Path) -> Config:
    """Return the configuration as it reads from the folder of `out`: relative paths lead to the same files."""
    start, end = config.root.resolve(), out.parent.resolve()
    if start == end:
        return replace(config, root=out.parent)

    def path(text: str) -> str:
        return text if os.path.isabs(text) else os.path.relpath(start / text, end)

    labels, uri = config.labels, config.tracking.uri
    lists = tuple(
        replace(one, path=path(one.path)) if isinstance(one, ListFile) else one for one in config.policy.lists
    )
    if labels is not None and labels.path is not None:
        labels = replace(labels, path=path(labels.path))
    if uri.startswith(_SQLITE) and not uri.startswith(f"{_SQLITE}/"):
        uri = _SQLITE + path(uri.removeprefix(_SQLITE))
    return replace(
        config,
        root=out.parent,
        log=replace(config.log, events=path(config.log.events)),
        policy=replace(config.policy, lists=lists),
        labels=labels,
        tracking=replace(config.tracking, uri=uri),
    )


def _verdict(tuned: Tuned) -> list[str]:
    """Return what came out, as sentences."""
    outcomes = [one.outcome for one in tuned.trials]
    counted = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
    lines = [f"{len(tuned.trials)} trials: {counted}."]
    own, best = tuned.own, tuned.best
    if best is own:
        return [*lines, f"None was better than your own settings (AP {_number(own.ap)} on the half that chooses)."]
    lines.append(
        f"AP on the half of the validation users that chooses: {_number(best.ap)}, your own settings {_number(own.ap)}"
        f"{_spread(tuned.gain)}."
    )
    if tuned.other_gain is not None:
        lines.append(
            f"On the other half, which nothing is chosen by: {_number(best.other_ap)}, your own settings "
            f"{_number(own.other_ap)}{_spread(tuned.other_gain)}."
        )
        if tuned.other_gain.lo <= 0:
            lines.append("The other half does not confirm a gain clearly: more frauds, or more users, would tell.")
    changes = ", ".join(f"{name} {before!r} -> {after!r}" for name, (before, after) in tuned.changed.items())
    return [*lines, f"Changed: {changes}."]


def _record(tuned: Tuned, best: Config, prepared: Prepared) -> RunRecord:
    """Return what the tracker is told: one run, the trials as its steps."""
    history: list[dict[str, float]] = []
    for n, one in enumerate(tuned.trials, 1):
        so_far = best_of(tuned.trials[:n]).ap
        history.append(
            {name: value for name, value in (("trial_ap", one.ap), ("best_ap", so_far)) if value is not None}
        )
    figures = {
        "choice_ap": tuned.best.ap,
        "choice_ap_own_settings": tuned.own.ap,
        "other_half_ap": tuned.best.other_ap,
        "other_half_ap_own_settings": tuned.own.other_ap,
    }
    return RunRecord(
        name=f"tune {best.model.name}",
        parameters=parameters_of(best),
        history=history,
        metrics={name: value for name, value in figures.items() if value is not None} | {"trials": len(tuned.trials)},
        tags={"fingerprint": prepared.fingerprint, "model": best.model.name},
        fit_s=sum(one.fit_s for one in tuned.trials),
    )


def _document(tuned: Tuned) -> Json:
    return {
        "trials": [one._asdict() | {"outcome": one.outcome} for one in tuned.trials],
        "best": tuned.best.number,
        "changed": {name: list(both) for name, both in tuned.changed.items()},
        "choice_ap": tuned.best.ap,
        "choice_ap_own_settings": tuned.own.ap,
        "gain": None if tuned.gain is None else tuned.gain._asdict(),
        "other_half_ap": tuned.best.other_ap,
        "other_half_ap_own_settings": tuned.own.other_ap,
        "other_half_gain": None if tuned.other_gain is None else tuned.other_gain._asdict(),
    }


def _show(tuned: Tuned, out: Path, picture: Path, screen: Screen) -> None:
    whole = sorted((one for one in tuned.trials if one.ap is not None), key=lambda one: -(one.ap or 0.0))
    shown = whole[:_SHOWN] + ([tuned.own] if tuned.own not in whole[:_SHOWN] else [])
    rows = [
        [
            f"{one.number}{' (yours)' if one is tuned.own else ''}",
            _number(one.ap),
            _number(one.other_ap),
            spoken_s(one.fit_s),
            *(f"{value:g}" for value in one.settings.values()),
        ]
        for one in shown
    ]
    header = ["trial", "AP", "other half", "fit", *(name.partition(".")[2] for name in tuned.own.settings)]
    title = f"The best of {len(tuned.trials)} trials (AP on the half of the validation users that chooses)"
    screen.table(title, header, rows)
    for line in _verdict(tuned):
        screen.results.print(line, markup=False, soft_wrap=True)
    screen.say(f"the settings that won: {out}; the trials as a picture: {picture}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _spread(gain: PairedDifference | None) -> str:
    return "" if gain is None else f" (difference {gain.diff:+.4f}, 95 % interval {gain.lo:+.4f} to {gain.hi:+.4f})"
