"""MLflow's client as the other files use it: it answers within seconds, or a ConnectionError says who did not.

Knows where a tracker is and how it fails, and nothing of runs (`tracking`) or of versions (`registry`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from fraud.bundle import sync_directory
from fraud.errors import FraudError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Found = TypeVar("Found")
SQLITE = "sqlite:///"
_MAX_REASON = 200
_CAUSED_BY = re.compile(r"Caused by \w+\(['\"](.+?)['\"]\)")  # how urllib3 ends a long sentence of requests
_OBJECT = re.compile(r"<[^<>]+ at 0x[0-9a-f]+>[:,]? ?")  # another text each time, though the trouble is the same
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# A tracker that is away must cost seconds, not MLflow's own minutes of retries; how it makes its tables and how far a
# download is are not ours to tell. Nobody outside is told that this runs (MLflow would by itself).
_SETTINGS = {
    _RETRIES: "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # there stands the one document of --json
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def client_of(uri: str) -> MlflowClient:
    """Return a client of the tracker and of its registry; a local SQLite store that is not there is made, whole.

    Raises what MLflow raises where the store cannot be opened: call it inside `answered`.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    with alone(uri):
        if uri.startswith(SQLITE):
            _make_store(Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve())
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_store(path: Path) -> None:
    """Make an SQLite store where there is none: aside, and under its name only when it is whole.

    MLflow makes its tables in place, for seconds, and can never again open a store that was cut short in them.
    """
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):  # by a call that was killed
        shutil.rmtree(left)
    if path.exists():
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # A new name each time: MLflow keeps the connections of a name, those to a file that is gone as well.
    with TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as aside:
        new = Path(aside) / path.name
        # The last connection that closes merges the journal into the file.
        SqlAlchemyStore(f"{SQLITE}{new}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        if not path.exists():  # else made meanwhile by another program, which does not wait for us
            # Those of a store that was removed: SQLite would apply them to the new one.
            for journal in ("-journal", "-wal", "-shm"):
                path.with_name(path.name + journal).unlink(missing_ok=True)
            new.rename(path)
    sync_directory(path.parent)


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """Run the block; what the tracker fails with becomes a ConnectionError that names the tracker and the reason.

    MLflow's errors, SQLAlchemy's and those of HTTP have no common kind. What is said of our own disk stays as it is.
    """
    try:
        yield
    except Exception as error:
        is_ours = isinstance(error, OSError) and error.errno == errno.ENOSPC
        is_told = isinstance(error, ConnectionError) and error.errno is None  # by a block inside this one
        if is_ours or is_told or isinstance(error, FraudError):
            raise
        where = without_password(uri)
        raise ConnectionError(f"the tracker at {where} did not do what was asked: {_reason(error)}") from error


@contextmanager
def asked_once() -> Iterator[None]:
    """Send each request of the block once.

    MLflow sends one again whose answer is late, though it may have been done: what makes a run would make two.
    """
    before = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETRIES]
        else:
            os.environ[_RETRIES] = before


def check_answers(uri: str) -> None:
    """Raise ConnectionError where the tracker at a URI does not answer, after one timeout."""
    with answered(uri), asked_once():
        client_of(uri).search_experiments(max_results=1)


def _reason(error: BaseException) -> str:
    """Return in a few words why a call failed: what the system said where a connection did, else what MLflow says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    text = _OBJECT.sub("", str(error))
    caused = _CAUSED_BY.search(text)
    if caused is not None:
        return caused[1]
    return text.splitlines()[0][:_MAX_REASON] if text else type(error).__name__


def found(look: Callable[[], Found]) -> Found | None:
    """Return what the look finds, None where the tracker says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return look()
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def download(artifacts: str, folder: Path, *, uri: str) -> Path:
    """Return where a copy of what an artefact URI names stands now, in `folder`; raise OSError for a full disk."""
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(artifact_uri=artifacts, dst_path=str(folder), tracking_uri=uri))
    except Exception as error:
        # Of the files of a folder MLflow says only in words what became of them.
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def absolute_uri(uri: str, root: Path) -> str:
    """Return a tracking URI; a relative SQLite path starts at the folder `root`."""
    if uri.startswith(SQLITE) and not uri.startswith(f"{SQLITE}/"):
        return f"{SQLITE}{(root / uri.removeprefix(SQLITE)).resolve()}"
    return uri


def without_password(uri: str) -> str:
    """Return a URI as it may be shown."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")).geturl()


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold the folder of a local SQLite store while the block runs; the kernel lets go when the process ends."""
    if not uri.startswith(SQLITE):
        yield
        return
    folder = Path(uri.removeprefix(SQLITE)).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
