"""`fraud publish`: the link DIR/current stands on the verified bundle that an alias names, and the service follows it.

A version is downloaded aside, verified, and gets its name DIR/BUNDLE in one rename; then the link moves, in one rename
too. So at every moment, a kill at any of them included, DIR/current is one whole bundle.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from fraud.bundle import sync_directory
from fraud.errors import BundleError, ConfigError, FraudError
from pipelines.console import Screen
from pipelines.files import only_one
from pipelines.models import Place, place_of, registry_at
from pipelines.registry import Registry
from pipelines.versions import Version

Json = dict[str, Any]  # Any: JSON
KEPT = 5  # bundles beside the one that answers and the one before it: a rollback to them waits for no download
_LINK = "current"
_BUNDLE = re.compile(r"[0-9a-f]{12}")
_LEFT_OVER = re.compile(r"\.(?:[0-9a-f]{12}|current)\.(?:partial|old)")
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))")


class Wanted(NamedTuple):
    """What is to be published: the version that an alias names, or the version of a number."""

    name: str
    alias: str | None
    number: str | None

    def version(self, registry: Registry) -> Version:
        """Return the version as the registry has it now; raise ConfigError where it has none."""
        version = registry.at(self.alias) if self.alias is not None else registry.numbered(str(self.number))
        if version is None:
            what = f"version that is its {self.alias}" if self.alias is not None else f"version {self.number}"
            raise ConfigError(f"the model {self.name!r} has no {what}; `fraud models` lists what it has")
        return version


def parse_model_uri(uri: str) -> Wanted:
    """Return what "models:/NAME@ALIAS" or "models:/NAME/VERSION" names; raise ConfigError for another text."""
    named = _MODEL_URI.fullmatch(uri)
    if named is None:
        raise ConfigError(
            f"{uri!r}: expected models:/NAME@ALIAS, such as models:/fraud@champion, or models:/NAME/VERSION"
        )
    return Wanted(named["name"], named["alias"], named["number"])


def publish(uri: str, out: Path, *, tracking_uri: str | None, every_s: float | None, screen: Screen) -> Json:
    """Return what DIR/current stands on, the version that a model URI names.

    every_s: look again so often, until SIGTERM or SIGINT; a tracker that is away, or holds what is no bundle, costs
    nothing but a warning then. Raises ConfigError, BundleError, ConnectionError, and OSError for the disk.
    """
    if every_s is not None and every_s <= 0:
        raise ConfigError(f"--every: {every_s:g} s from one look to the next; expected more than 0")
    wanted = parse_model_uri(uri)
    place = place_of(None, tracking_uri, wanted.name)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out / _LINK):  # its lock lies in the folder: of one that is mounted, nothing beside it can be written
        _sweep(out)
        if every_s is None:
            registry = registry_at(place)
            version = wanted.version(registry)
            _publish_version(registry, version, out, screen)
            return {
                "name": wanted.name,
                "version": version.number,
                "bundle": version.bundle,
                "current": str(out / _LINK),
            }
        with _told_to_end() as ends:
            _follow(wanted, place, out, every_s, ends, screen)
        return {"name": wanted.name, "bundle": _target(out), "current": str(out / _LINK)}


def _follow(wanted: Wanted, place: Place, out: Path, every_s: float, ends: Event, screen: Screen) -> None:
    """Keep the link on the alias until told to end; the same trouble is said once.

    A version that is not whole in the tracker is downloaded once: what is waited for is another version.
    """
    registry: Registry | None = None
    published: str | None = None
    refused = set[str]()
    trouble: tuple[type[Exception], str] | None = None
    while not ends.is_set():
        try:
            registry = registry or registry_at(place)
            version = wanted.version(registry)
            if version.number not in refused:
                # The link is looked at as well: whoever moves it by hand finds it moved back.
                if published != version.bundle or published != _target(out):
                    try:
                        _publish_version(registry, version, out, screen)
                    except BundleError:
                        refused.add(version.number)
                        raise
                    published = version.bundle
                if trouble is not None:
                    screen.say(f"all is well again; {out / _LINK} stands on {version}")
                trouble = None
        except (FraudError, OSError) as error:
            before, trouble = trouble, (type(error), str(error))
            if trouble != before:
                screen.warn(f"{error}; {out / _LINK} stays on {_target(out) or 'nothing'}")
        ends.wait(every_s)


def _publish_version(registry: Registry, version: Version, out: Path, screen: Screen) -> None:
    """Let the link stand on the verified bundle of a version."""
    before = _target(out)
    registry.fetch(version, out)
    if before == version.bundle:
        screen.say(f"{out / _LINK} stands on {version} of the model {registry.name}")
    else:
        _point(out, version.bundle)
        screen.say(f"{out / _LINK} now stands on {version} of the model {registry.name}; before: {before or 'nothing'}")
    _thin_out(out, {version.bundle, before})


def _point(out: Path, bundle: str) -> None:
    """Move the link onto a bundle of the folder."""
    os.utime(out / bundle)  # when a bundle was last pointed at: the oldest go first
    aside = out / f".{_LINK}.partial"
    aside.unlink(missing_ok=True)
    aside.symlink_to(bundle)
    aside.rename(out / _LINK)
    sync_directory(out)


def _target(out: Path) -> str | None:
    """Return the bundle that the link names; raise ConfigError where something else has its name."""
    link = out / _LINK
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link}: is no link; expected a new folder, or one that this command filled")
    return os.readlink(link) if link.is_symlink() else None


def _thin_out(out: Path, spared: set[str | None]) -> None:
    """Remove the bundles that were last pointed at the longest ago, all but KEPT of those that are not spared."""
    others = [path for path in out.iterdir() if _BUNDLE.fullmatch(path.name) and path.name not in spared]
    for path in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)[KEPT:]:
        old = path.with_name(f".{path.name}.old")
        path.rename(old)  # no half of a bundle under the name of a whole one
        shutil.rmtree(old)


def _sweep(out: Path) -> None:
    """Remove what a run that was killed left."""
    for path in out.iterdir():
        if _LEFT_OVER.fullmatch(path.name):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _told_to_end() -> Iterator[Event]:
    """Run the block until it ends, or SIGTERM or SIGINT comes: either is how this is meant to end.

    A call that hangs is broken off. But an exception that a signal raises may be lost in a library's own clean-up, so
    that the event is set as well.
    """
    ends = Event()

    def end(_signal: int, _frame: object) -> None:
        ends.set()
        raise KeyboardInterrupt

    before = {told: signal.signal(told, end) for told in (signal.SIGTERM, signal.SIGINT)}
    try:
        with suppress(KeyboardInterrupt):
            yield ends
    finally:
        for told, handler in before.items():
            signal.signal(told, handler)
