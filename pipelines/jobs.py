"""Fits of scorers as jobs: in parallel processes where cores are free, each result written whole: none is done twice.

What crosses to another process is text: the configuration as TOML and paths. A job leaves its fit as plain files in its
own folder; beside it stand the checkpoint that a killed job goes on from, and how far it is. A process whose parent is
gone ends itself.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fraud.ablation import open_histories
from fraud.config import Config, PolicyConfig, TrackingConfig, config_to_toml, parse_config
from fraud.errors import FraudError
from fraud.learning import FittedModel
from fraud.preparation import Prepared, open_prepared
from pipelines.console import Advance, Screen, spoken_s
from pipelines.files import directory_written_whole
from pipelines.train import Fit, fit_resumed

_FIT, _META, _PROGRESS = "fit", "fit.json", "progress"
_POLL_S = 0.3


class Job(NamedTuple):
    """One fit. title: what a person is told. folder: the job's own. histories: the set is one of an ablation."""

    title: str
    config: Config
    prepared: Path
    folder: Path
    histories: bool


def free_cores() -> int:
    """Return how many processes this one may keep busy."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], *, n_processes: int, screen: Screen) -> None:
    """Fit what is not fitted yet; every job then has its result. An error names the job, and ends the others."""
    pending = [job for job in jobs if not _is_fitted(job)]
    if len(pending) < len(jobs):
        screen.say(f"taking up {len(jobs) - len(pending)} of {len(jobs)} fits that were done")
    for job in pending:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / _PROGRESS).unlink(missing_ok=True)
    with screen.progress() as advance:
        board = _Board(pending, advance, screen)
        if min(n_processes, len(pending)) <= 1:
            for job in pending:
                board.show(None)
                _fit(*_as_text(job), _titled(job.title, advance))
                board.show(job)
        else:
            _run_in_parallel(pending, n_processes, board)


def read_fit(job: Job) -> Fit:
    """Return the result of a job that was run."""
    folder = job.folder / _FIT
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    model = FittedModel(
        name=job.config.model.name,
        model_files={name: (folder / "model" / name).read_bytes() for name in meta["files"]},
        validation_logit_V=np.load(folder / "validation_logit_V.npy"),
        test_logit_T=np.load(folder / "test_logit_T.npy"),
    )
    return Fit(model, tuple(meta["history"]), meta["fit_s"])


class _Board:
    """Shows how far each job is, how far all are, and how long the rest will take."""

    def __init__(self, jobs: Sequence[Job], advance: Advance, screen: Screen) -> None:
        self._jobs, self._advance, self._screen = jobs, advance, screen
        self._started = time.monotonic()
        self._done: set[Path] = set()

    def show(self, finished: Job | None) -> None:
        """Show the progress files; say which job was finished, where one was."""
        if finished is not None:
            self._done.add(finished.folder)
        shares: list[float] = []
        for job in self._jobs:
            done, whole = (1, 1) if job.folder in self._done else _progress(job)
            shares.append(done / whole)
            if done:
                self._advance(job.title, done, whole)
        share = sum(shares) / max(len(shares), 1)
        if len(self._jobs) > 1:
            self._advance("all fits", round(100 * share), 100)
        if finished is not None:
            spent_s = time.monotonic() - self._started
            left = f", about {spoken_s(spent_s / share - spent_s)} left" if share < 1 else ""
            self._screen.say(f"{finished.title} is fitted: {len(self._done)} of {len(self._jobs)}{left}")


def _run_in_parallel(jobs: Sequence[Job], n_processes: int, board: _Board) -> None:
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads half-alive
    pool = ProcessPoolExecutor(min(n_processes, len(jobs)), mp_context=context, initializer=_end_with_the_parent)
    try:
        begun: dict[Future[None], Job] = {pool.submit(_fit_alone, *_as_text(job)): job for job in jobs}
        while begun:
            ended, _ = wait(begun, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in ended:
                job = begun.pop(future)
                try:
                    future.result()
                except BrokenProcessPool:
                    raise ChildProcessError(
                        f"{job.title}: a process was killed while it fitted (out of memory?); --resume goes on, "
                        "--jobs 1 needs the least memory"
                    ) from None
                board.show(job)
            board.show(None)
    except BaseException:
        # Whatever ended the run (an error of one job, Ctrl-C), the others must not go on unseen.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    pool.shutdown()


def _end_with_the_parent() -> None:
    """Leave Ctrl-C to the parent, and end this process when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # it runs in a child only

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_text(job: Job) -> tuple[str, str, str, str, str, bool]:
    text = config_to_toml(job.config)
    return job.title, text, str(job.config.root), str(job.prepared), str(job.folder), job.histories


def _fit_alone(title: str, text: str, root: str, prepared: str, folder: str, histories: bool) -> None:
    """Fit one job in a process of its own, which tells how far it is through a file."""
    progress = Path(folder) / _PROGRESS

    def advance(stage: str, done: int, whole: int) -> None:
        progress.write_text(f"{done} {whole}", encoding="utf-8")

    _fit(title, text, root, prepared, folder, histories, advance)


def _fit(title: str, text: str, root: str, prepared: str, folder: str, histories: bool, advance: Advance) -> None:
    config = parse_config(text, source=title, root=Path(root))
    try:
        fit = fit_resumed(_opened(Path(prepared), histories=histories), config, Path(folder), advance)
    except FraudError as error:
        raise type(error)(f"{title}: {error}") from None
    except Exception as error:
        error.add_note(f"while fitting {title}")
        raise
    with directory_written_whole(Path(folder) / _FIT) as aside:
        (aside / "model").mkdir()
        for name, content in fit.model.model_files.items():
            (aside / "model" / name).write_bytes(content)
        np.save(aside / "validation_logit_V.npy", fit.model.validation_logit_V)
        np.save(aside / "test_logit_T.npy", fit.model.test_logit_T)
        meta = {
            "digest": _digest(config),
            "files": sorted(fit.model.model_files),
            "history": fit.history,
            "fit_s": fit.fit_s,
        }
        (aside / _META).write_text(json.dumps(meta), encoding="utf-8")
    for checkpoint in Path(folder).glob("*.checkpoint"):
        checkpoint.unlink()


def _titled(title: str, advance: Advance) -> Advance:
    """Return what shows every stage under one title."""

    def titled(stage: str, done: int, whole: int) -> None:
        advance(title, done, whole)

    return titled


def _opened(directory: Path, *, histories: bool) -> Prepared:
    return open_histories(directory).prepared if histories else open_prepared(directory)


def _is_fitted(job: Job) -> bool:
    """Return True where the result of this very job stands there; one of other settings is removed."""
    with suppress(OSError, ValueError, KeyError):
        if json.loads((job.folder / _FIT / _META).read_text(encoding="utf-8"))["digest"] == _digest(job.config):
            return True
    shutil.rmtree(job.folder / _FIT, ignore_errors=True)
    return False


def _digest(config: Config) -> str:
    """Return what a fit depends on beside the prepared set: neither the policy nor the tracker."""
    text = config_to_toml(replace(config, policy=PolicyConfig(), tracking=TrackingConfig()))
    return hashlib.sha256(text.encode()).hexdigest()


def _progress(job: Job) -> tuple[int, int]:
    try:
        done, whole = (job.folder / _PROGRESS).read_text(encoding="utf-8").split()
        return int(done), max(int(whole), 1)
    except (OSError, ValueError):  # not begun, or just being written
        return 0, 1
