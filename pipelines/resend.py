"""`fraud track --resend`: the runs that were kept while the tracker was away are told to it, each once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fraud.errors import ConfigError, DataError, FraudError
from pipelines.console import Screen
from pipelines.mlflow_client import absolute_uri, check_answers
from pipelines.records import UNTRACKED, held, read_untold
from pipelines.tracking import tell

Json = dict[str, Any]  # Any: JSON


class Trackers:
    """The trackers that runs go to: one that is away is waited for once, not once for each run."""

    def __init__(self, instead: str | None) -> None:
        """Take the URI of the one tracker for all runs; None: each goes where it was to go."""
        self._instead = instead
        self._there: dict[str, ConnectionError | None] = {}  # what it failed with, by URI

    def tell(self, path: Path) -> str | None:
        """Return the id of the run that a file kept, and remove the file; None where another process told it since.

        Raises FraudError, OSError with the reason why the run is still kept.
        """
        with held(path) as is_held:
            if not is_held:
                raise DataError("a command is telling it just now")
            if not path.exists():
                return None
            run = read_untold(path)
            uri = run.uri if self._instead is None else absolute_uri(self._instead, Path())
            self._check(uri)
            try:
                run_id = tell(run, uri)
            except ConnectionError:
                self._there.pop(uri)  # to be asked again: the fault may be this run's alone
                raise
            path.unlink()
            return run_id

    def _check(self, uri: str) -> None:
        if uri not in self._there:
            try:
                check_answers(uri)
                self._there[uri] = None
            except ConnectionError as error:
                self._there[uri] = error
        if (error := self._there[uri]) is not None:
            raise error


def resend(folder: Path, *, tracking_uri: str | None, screen: Screen) -> Json:
    """Return which runs kept in or below a folder were "sent", and which are still "kept", with the reason.

    tracking_uri: where to; None: where each was to go. What a telling that was killed left half is gone on with, and no
    run is made twice. Raises ConfigError where there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected one with {UNTRACKED}/ in or below it")
    places = [folder, *folder.rglob(UNTRACKED)]
    paths = sorted({path for place in places if place.name == UNTRACKED for path in place.glob("*.json")})
    trackers = Trackers(tracking_uri)
    sent, kept = list[Json](), list[Json]()
    for path in _parents_first(paths):
        try:
            run_id = trackers.tell(path)
        except (FraudError, OSError) as error:
            kept.append({"record": str(path), "reason": str(error)})
            screen.warn(f"{path} is still kept: {error}")
            continue
        if run_id is not None:
            sent.append({"record": str(path), "run_id": run_id})
            screen.say(f"{path}: now the run {run_id}")
    if not paths:
        screen.say(f"{folder}: no run is kept in or below it")
    return {"sent": sent, "kept": kept}


def _parents_first(paths: Sequence[Path]) -> list[Path]:
    """Return the files in the order to tell them: a run stands below one that is there."""

    def is_child(path: Path) -> bool:
        try:
            return read_untold(path).record.parent is not None
        except DataError:
            return False  # it says so when its turn comes

    return sorted(paths, key=is_child)
