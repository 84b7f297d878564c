"""The trials of `fraud tune`: Optuna suggests settings, each is fitted and judged on validation, or stopped early.

Optuna's study stands in the working folder as SQLite, the logits of each whole trial beside it. A trial that a kill
interrupted never counts; it is run again under the same settings: what is suggested depends on the finished ones alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fraud.config import Config, PolicyConfig, TrackingConfig, config_to_toml
from fraud.errors import DataError, FraudError
from fraud.learning import fit_for_choice
from fraud.metrics import Examples, PairedDifference, average_precision, paired_ap_difference
from fraud.preparation import Prepared
from pipelines.console import Screen, spoken_s
from pipelines.files import written_whole
from pipelines.search_space import (
    Value,
    distributions,
    own_settings,
    search_space,
    suggested,
    with_settings,
    within,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from fraud.training import EpochReport

Json = dict[str, Any]  # Any: JSON
_STUDY, _NAME = "study.db", "tune"
_RANDOM_TRIALS = 8  # before the sampler draws from what did well
_TRIALS_BEFORE_PRUNING = 4


class Done(NamedTuple):
    """A finished trial, counted from 1. ap: on the first half of the validation users, None where it is not whole.

    other_ap: on the other half, which nothing is chosen by. why: what made it fail, else empty.
    """

    number: int
    settings: dict[str, Value]
    ap: float | None
    other_ap: float | None
    fit_s: float
    why: str

    @property
    def outcome(self) -> str:
        """Return "whole", "stopped early" or "failed"."""
        return "whole" if self.ap is not None else "failed" if self.why else "stopped early"


class Halves(NamedTuple):
    """The validation examples: which are of the first half of the users, label and user of each."""

    is_first_V: np.ndarray
    label_V: np.ndarray
    user_V: np.ndarray

    def ap(self, logit_V: np.ndarray, *, first: bool) -> float | None:
        """Return the AP on one half; None without a fraud."""
        chosen_V = self.is_first_V == first
        return average_precision(logit_V[chosen_V], self.label_V[chosen_V])

    def gain(self, a_V: np.ndarray, b_V: np.ndarray, *, first: bool, seed: int) -> PairedDifference | None:
        """Return AP of a minus AP of b on one half, with its interval by user; None without a fraud."""
        chosen_V = self.is_first_V == first
        a, b = (
            Examples(
                score_N=logit_V[chosen_V], label_N=self.label_V[chosen_V], user_N=self.user_V[chosen_V], amount_N=None
            )
            for logit_V in (a_V, b_V)
        )
        return paired_ap_difference(a, b, seed=seed)


def halves_of(prepared: Prepared) -> Halves:
    """Return the halves of the validation users; raise DataError where the first one holds no fraud."""
    valid_V = np.flatnonzero(prepared.validates_N)
    user_V = prepared.user_N[valid_V].astype(np.int64)
    halves = Halves(prepared.half_U[user_V] < 0.5, prepared.label_N[valid_V], user_V)
    if not (halves.label_V[halves.is_first_V] == 1).any():
        raise DataError("the first half of the validation users holds no known fraud: nothing can be chosen by it")
    return halves


def read_logits(work: Path, number: int) -> np.ndarray:
    """Return the logits of the validation examples of a whole trial."""
    return np.load(work / "trials" / f"{number}.npy")


def best_of(done: Sequence[Done]) -> Done:
    """Return the trial with the highest AP, the earliest of equals: the user's own settings where none beats them."""
    return max(done, key=lambda one: -1.0 if one.ap is None else one.ap)


def run_trials(prepared: Prepared, config: Config, work: Path, *, trials: int, screen: Screen) -> tuple[Done, ...]:
    """Return that many finished trials, the user's own settings first; those of a search that was killed are taken up.

    prepared: without its test period (`fraud.preparation.without_test`). Raises ConfigError, DataError where the user's
    own settings cannot be fitted; other settings that cannot count as failed trials.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    halves = halves_of(prepared)
    with _study(prepared, config, work) as study, screen.progress() as advance:

        def epoch_done(epoch: EpochReport) -> None:
            advance("this trial", epoch.epoch, config.training.epochs)

        search = _Search(study, prepared, halves, config, work, epoch_done)
        done = search.finished()
        if done:
            screen.say(f"taking up {len(done)} trials in {work / _STUDY}")
        n_before, started = len(done), time.monotonic()
        while len(done) < trials:
            if done:
                search.run_next(len(done) + 1)
            else:
                search.run_own()
            done = search.finished()
            left_s = (time.monotonic() - started) / (len(done) - n_before) * (trials - len(done))
            advance("tune", len(done), trials)
            screen.say(_words(done, trials, left_s))
    return tuple(done[:trials])


@dataclass(frozen=True, slots=True)
class _Search:
    study: optuna.Study
    prepared: Prepared
    halves: Halves
    config: Config
    work: Path
    epoch_done: Callable[[EpochReport], None]

    def run_own(self) -> None:
        """Run the user's own settings; the sampler learns of those that lie within its ranges."""
        from optuna.trial import create_trial

        losses: dict[int, float] = {}

        def report(epoch: EpochReport) -> None:
            self.epoch_done(epoch)
            if epoch.stage == "train" and epoch.held_out_loss is not None:
                losses[epoch.epoch] = -epoch.held_out_loss

        space = search_space(self.config)
        own = own_settings(self.config, space)
        ap, kept = self._fitted(self.config, 1, report)
        known = within(own, space)
        every = distributions(space)
        # Added when it is done: a search that is killed before has no trial yet.
        self.study.add_trial(
            create_trial(
                value=ap,
                params=known,
                distributions={name: every[name] for name in known},
                intermediate_values=losses,
                user_attrs=kept | {"settings": own},
            )
        )

    def run_next(self, number: int) -> None:
        """Run one more trial; stop it once its held-out loss is worse than the median of the others at that epoch."""
        from optuna import TrialPruned
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        # Seeded by its number, so that a resumed search suggests what the killed one would have.
        seed = int(np.random.SeedSequence([self.config.training.seed, number]).generate_state(1)[0])
        self.study.sampler = TPESampler(seed=seed, n_startup_trials=_RANDOM_TRIALS)
        trial = self.study.ask()
        settings = suggested(trial, search_space(self.config))
        trial.set_user_attr("settings", settings)
        started = time.monotonic()

        def report(epoch: EpochReport) -> None:
            self.epoch_done(epoch)
            if epoch.stage == "train" and epoch.held_out_loss is not None:
                trial.report(-epoch.held_out_loss, epoch.epoch)
                if trial.should_prune():
                    raise TrialPruned

        value: float | None = None
        kept: Json = {}
        try:
            value, kept = self._fitted(with_settings(self.config, settings), number, report)
            state = TrialState.COMPLETE
        except TrialPruned:
            state = TrialState.PRUNED
        except FraudError as error:  # settings under which nothing can be fitted, such as a loss that is not finite
            state, kept = TrialState.FAIL, {"why": str(error)}
        for name, attribute in ({"fit_s": round(time.monotonic() - started, 3)} | kept).items():
            trial.set_user_attr(name, attribute)
        self.study.tell(trial, value, state)

    def finished(self) -> list[Done]:
        """Return the trials that ran to an end of their own, in order."""
        from optuna.trial import TrialState

        def is_finished(trial: FrozenTrial) -> bool:
            failed = trial.state == TrialState.FAIL and "why" in trial.user_attrs
            return failed or trial.state in (TrialState.COMPLETE, TrialState.PRUNED)

        def done(number: int, trial: FrozenTrial) -> Done:
            kept = trial.user_attrs
            ap = trial.value if trial.state == TrialState.COMPLETE else None
            return Done(number, kept["settings"], ap, kept.get("other_ap"), kept["fit_s"], kept.get("why", ""))

        chosen = [trial for trial in self.study.get_trials(deepcopy=False) if is_finished(trial)]
        return [done(number, trial) for number, trial in enumerate(chosen, 1)]

    def _fitted(self, config: Config, number: int, report: Callable[[EpochReport], None]) -> tuple[float, Json]:
        """Return the AP on the first half and what else is kept of a whole trial, whose logits then stand in a file."""
        started = time.monotonic()
        fitted = fit_for_choice(self.prepared, config, report=report)
        logit_V = fitted.validation_logit_V if fitted.choice_logit_V is None else fitted.choice_logit_V
        with written_whole(self.work / "trials" / f"{number}.npy") as aside, aside.open("wb") as file:
            np.save(file, logit_V)
        ap = self.halves.ap(logit_V, first=True)
        assert ap is not None  # there is a fraud in it
        kept = {"other_ap": self.halves.ap(logit_V, first=False), "fit_s": round(time.monotonic() - started, 3)}
        return ap, kept


@contextmanager
def _study(prepared: Prepared, config: Config, work: Path) -> Iterator[optuna.Study]:
    """Yield the study in the working folder, a new one unless it is of these settings and these data; then close it."""
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import TrialState

    text = config_to_toml(replace(config, policy=PolicyConfig(), tracking=TrackingConfig()))
    parts = [text, prepared.fingerprint, repr(search_space(config)), optuna.__version__]
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    path = work / _STUDY
    note = work / "study.txt"
    if not note.exists() or note.read_text(encoding="utf-8") != identity:
        for left in work.glob(f"{_STUDY}*"):
            left.unlink()
        with written_whole(note) as aside:
            aside.write_text(identity, encoding="utf-8")
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=_TRIALS_BEFORE_PRUNING, n_warmup_steps=1 + config.training.epochs // 4
    )
    storage = RDBStorage(f"sqlite:///{path.resolve()}")
    try:
        study = optuna.create_study(
            storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True, pruner=pruner
        )
        for left in study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)):
            study.tell(left.number, state=TrialState.FAIL)  # the run that made it was killed
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _words(done: Sequence[Done], trials: int, left_s: float) -> str:
    last, best = done[-1], best_of(done)
    said = f"AP {last.ap:.4f}" if last.ap is not None else f"{last.outcome} {last.why}".rstrip()
    left = f"; about {spoken_s(left_s)} left" if len(done) < trials else ""
    return f"trial {last.number} of {trials}: {said} (best {best.ap:.4f}, trial {best.number}){left}"
