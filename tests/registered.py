"""MLflow's registry as a test needs it: a plain one in memory, a client that dies in the middle, and a real small one.

The plain one answers as MLflow does (test_registry.py compares them), a thousand times as fast.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fraud.bundle import load_bundle
from fraud.config import load_config
from pipelines.console import Screen
from pipelines.records import RunRecord
from pipelines.registry import Registry, open_registry
from pipelines.tracking import track
from pipelines.versions import Version
from tests.tampered import copied

NAME = "fraud"


@dataclass
class PlainVersion:
    """One version, as far as it is asked for."""

    version: str
    tags: dict[str, str]
    run_id: str = "run"
    source: str = "file:///nowhere"


@dataclass
class PlainModel:
    """One registered model."""

    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class Page(list[PlainVersion]):
    """The only page of a search."""

    token = None


class PlainClient:
    """The calls of MLflow's client that a registry makes, on one model in memory."""

    def __init__(self, n_versions: int) -> None:
        """Make a model of so many versions: 1, 2, … of the bundles 000000000001, 000000000002, …."""
        self.model = PlainModel()
        numbers = map(str, range(1, n_versions + 1))
        self.versions = {number: PlainVersion(number, {"fraud.bundle": f"{number:0>12}"}) for number in numbers}

    def get_registered_model(self, name: str) -> PlainModel:
        _check_there(name == NAME)
        return copy.deepcopy(self.model)

    def get_model_version(self, name: str, version: str) -> PlainVersion:
        _check_there(name == NAME and version in self.versions)
        return copy.deepcopy(self.versions[version])

    def search_model_versions(self, filter_string: str) -> Page:
        return Page(copy.deepcopy(list(self.versions.values())) if filter_string == f"name = '{NAME}'" else [])

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        _check_there(name == NAME)
        self.model.tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        _check_there(name == NAME)
        self.model.tags.pop(key, None)

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        _check_there(name == NAME and version in self.versions)
        self.versions[version].tags[key] = value

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        _check_there(name == NAME and version in self.versions)
        self.versions[version].tags.pop(key, None)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        _check_there(name == NAME and version in self.versions)
        self.model.aliases[alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        _check_there(name == NAME)
        self.model.aliases.pop(alias, None)

    def delete_model_version(self, name: str, version: str) -> None:
        _check_there(name == NAME and version in self.versions)
        del self.versions[version]
        self.model.aliases = {alias: named for alias, named in self.model.aliases.items() if named != version}


def _check_there(is_there: bool) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    if not is_there:
        raise MlflowException("not there", error_code=RESOURCE_DOES_NOT_EXIST)


class Watched:
    """A client before whose call number `at` (of those that write) something happens: a kill, or another's work."""

    def __init__(self, client: PlainClient, at: int, happens: Callable[[], None]) -> None:
        self._client, self._at, self._happens, self.n_writes = client, at, happens, 0

    def __getattr__(self, name: str) -> Any:  # Any: whatever the client has
        method = getattr(self._client, name)
        if not name.startswith(("set_", "delete_")):
            return method

        def watched(*arguments: str) -> None:
            if self.n_writes == self._at:
                self._happens()
            self.n_writes += 1
            method(*arguments)

        return watched


class Turns:
    """Two threads that call one client take turns, call by call, in an order drawn by seed.

    Who sleeps wakes when the other is done or sleeps as well: a pause is longer than what anyone does in between.
    """

    def __init__(self, seed: int) -> None:
        self._chance, self._changed = random.Random(seed), threading.Condition()
        self._awake, self._asleep, self._asking = {0, 1}, set[int](), set[int]()
        self._turn: int | None = None

    def __call__(self, thread: int, client: PlainClient) -> Any:  # Any: stands in for a client
        """Return the client as one of the two threads, 0 or 1, calls it."""
        return _Stepped(client, self, thread)

    def take(self, thread: int) -> None:
        """Wait for the turn of a thread."""
        with self._changed:
            self._asking.add(thread)
            self._draw()
            self._changed.wait_for(lambda: self._turn == thread)
            self._asking.discard(thread)

    def give(self) -> None:
        """End a turn."""
        with self._changed:
            self._turn = None
            self._draw()

    def sleep(self, thread: int) -> None:
        """Wait until nobody else is awake."""
        with self._changed:
            self._awake.discard(thread)
            self._asleep.add(thread)
            self._draw()
            self._changed.wait_for(lambda: thread in self._awake)

    def leave(self, thread: int) -> None:
        """Take part no longer."""
        with self._changed:
            self._awake.discard(thread)
            self._draw()

    def _draw(self) -> None:
        if not self._awake:
            self._awake, self._asleep = self._asleep, set()
        if self._turn is None and self._awake and self._asking >= self._awake:
            self._turn = self._chance.choice(sorted(self._awake))
        self._changed.notify_all()


class _Stepped:
    def __init__(self, client: PlainClient, turns: Turns, thread: int) -> None:
        self._client, self._turns, self._thread = client, turns, thread

    def __getattr__(self, name: str) -> Any:  # Any: whatever the client has
        def stepped(*arguments: str) -> Any:
            self._turns.take(self._thread)
            try:
                return getattr(self._client, name)(*arguments)
            finally:
                self._turns.give()

        return stepped


class Killed(BaseException):
    """What a kill leaves of the rest of a call: nothing."""


def killed() -> None:
    """End whoever calls."""
    raise Killed


def registry_of(client: PlainClient | Watched) -> Registry:
    """Return a registry on a plain client."""
    return Registry(client, "memory", NAME)  # type: ignore[arg-type]


class Registered(NamedTuple):
    """A real registry in a folder: its URI, and a version of each bundle by the name it was trained under."""

    uri: str
    registry: Registry
    versions: dict[str, Version]


def registered(uri: str, bundles: dict[str, Path], folder: Path, name: str = NAME) -> Registered:
    """Return a registry at a tracking URI with a version of each bundle, each of them tracked; no alias is set.

    name: the model's there.
    """
    registry, versions = open_registry(uri, name), dict[str, Version]()
    for model, source in bundles.items():
        bundle = copied(source, folder / model)
        config = load_config(bundle / "config.toml", [f"tracking.uri={uri}"])
        record = RunRecord(name=model, parameters={}, history=[], metrics={}, tags={}, fit_s=1.0)
        run_id = track(record, bundle, config, Screen(as_json=True))
        assert run_id is not None
        versions[model] = registry.add(bundle, run_id=run_id, tags={})
        assert versions[model].bundle == load_bundle(bundle).version
    return Registered(uri, registry, versions)
