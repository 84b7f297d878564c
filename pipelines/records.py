"""What the tracker is told of a run, and the file that holds it until the tracker has it.

The file lies in `untracked/` beside the bundle and says all that telling needs: where to, what, and with which files.
Those are named as seen from beside `untracked/`, so that a folder moves with its records. Knows nothing of MLflow.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fraud.errors import ConfigError, DataError
from pipelines.files import only_one, written_whole

UNTRACKED = "untracked"
_FORMAT = 1
_ATTEMPTS = 5
# These differ when a killed command does the same work again.
_OF_ONE_ATTEMPT = ("id", "parent", "fit_s")

Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the tracker is told of one training: history has the figures of each epoch, in order.

    id: the record's own, by which the tracker is asked whether it has the run; a new one, unless the command that makes
    the record wants to find its run again. parent: the id of the record whose run this one stands below.
    """

    name: str
    parameters: Mapping[str, str]
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    fit_s: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UntoldRun:
    """A run that the tracker may not have: its record, when it ended, where it belongs, and what goes with it.

    config: TOML text. bundle: logged as the run's model, while it has this version. files: the run's other artefacts.
    earlier_ids: of its record, when commands that were killed told it.
    """

    record: RunRecord
    ended_ms: int
    uri: str
    experiment: str
    config: str
    bundle: Path | None
    bundle_version: str | None
    files: tuple[Path, ...]
    earlier_ids: tuple[str, ...] = ()


_ADAPTER = TypeAdapter(UntoldRun)


@contextmanager
def kept(run: UntoldRun, wanted: Path) -> Iterator[tuple[UntoldRun, Path]]:
    """Yield the run and the file that keeps it while the block runs, and after that unless the block removes it.

    Where a file of the wanted name keeps another run, or another process is telling it, the name gets a number. Where
    it keeps this same run, left by a command that was killed, that one is yielded: the tracker may have a part of it.
    Raises OSError where it cannot be written.
    """
    for path in _places(wanted):
        with held(path) as is_held:
            mine = _taken_up(run, path) if is_held else None
            if mine is None:
                continue
            with written_whole(path) as aside:
                aside.write_text(_text(mine, path), encoding="utf-8")
            yield mine, path
        return


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Yield True where no other process tells the run of this file, and hold it while the block runs.

    The folder goes when nothing is kept there any more.
    """
    with ExitStack() as stack:
        is_held = True
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                stack.enter_context(only_one(path))
                break
            except ConfigError:
                is_held = False
                break
            except FileNotFoundError:  # a run beside this one was told, and removed the folder that was empty
                if attempt == _ATTEMPTS:
                    raise
        yield is_held
    with suppress(OSError):  # others are kept there
        path.parent.rmdir()


def read_untold(path: Path) -> UntoldRun:
    """Return the run that a file keeps. Raises DataError with what is missing or wrong."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    tree = tree if isinstance(tree, dict) else {}
    if tree.pop("format", None) != _FORMAT:
        lacking = [one.name for one in fields(UntoldRun) if one.default is MISSING and one.name not in tree]
        raise DataError(f"{path}: not a record of format {_FORMAT}, as this version writes it: no {', '.join(lacking)}")
    beside = path.parent.parent
    try:
        run = _ADAPTER.validate_python(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(step) for step in problem["loc"])
        raise DataError(f"{path}: {where}: {problem['msg']}") from None
    bundle = None if run.bundle is None else beside / run.bundle
    return replace(run, bundle=bundle, files=tuple(beside / file for file in run.files))


def _places(wanted: Path) -> Iterator[Path]:
    yield wanted
    for nth in count(2):
        yield wanted.with_name(f"{wanted.stem}-{nth}{wanted.suffix}")


def _taken_up(run: UntoldRun, path: Path) -> UntoldRun | None:
    """Return what a file is to keep: the run, or the same one as a killed command left it; None: it keeps another."""
    if not path.exists():
        return run
    try:
        left = read_untold(path)
    except DataError:
        return None
    if _content(left) != _content(run):
        return None
    record = replace(left.record, id=run.record.id, parent=run.record.parent)
    earlier = dict.fromkeys((*left.earlier_ids, left.record.id))
    earlier.pop(record.id, None)  # a command may give its record the same id each time
    return replace(left, record=record, earlier_ids=tuple(earlier))


def _content(run: UntoldRun) -> str:
    record = {name: value for name, value in asdict(run.record).items() if name not in _OF_ONE_ATTEMPT}
    return json.dumps([record, run.uri, run.experiment, run.bundle_version], sort_keys=True)


def _text(run: UntoldRun, path: Path) -> str:
    beside = path.parent.parent
    tree: Json = {"format": _FORMAT} | asdict(run)
    tree["bundle"] = None if run.bundle is None else os.path.relpath(run.bundle, beside)
    tree["files"] = [os.path.relpath(file, beside) for file in run.files]
    return json.dumps(tree, indent=1)
