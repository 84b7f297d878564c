"""`fraud models`, `promote` and `rollback`: who is champion, since when, on which data, with which figures."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from fraud.bundle import Bundle, load_bundle
from fraud.config import TrackingConfig, load_config
from fraud.errors import ConfigError
from fraud.manifest import MANIFEST
from pipelines.console import Screen, interval
from pipelines.mlflow_client import SQLITE, absolute_uri, without_password
from pipelines.records import RunRecord
from pipelines.registry import Registry, open_registry
from pipelines.tracking import track
from pipelines.tracking import tracking_uri as tracking_uri_of
from pipelines.train import parameters_of
from pipelines.transitions import REASON, ROLLED_BACK
from pipelines.versions import MODEL_TAG, NEWEST_EVENT, NEWEST_LABEL, Version, figures_of

Json = dict[str, Any]  # Any: JSON
_CONFIG = Path("config.toml")


class Place(NamedTuple):
    """Where a registered model is: the URI of the tracker, and its name there."""

    uri: str
    name: str


def place_of(config: Path | None, tracking_uri: str | None, name: str | None) -> Place:
    """Return where the registered model is; what is given goes before the configuration.

    Then come the environment's MLFLOW_TRACKING_URI, the config.toml of the current folder, and its mlflow.db.
    """
    tracking = TrackingConfig()
    uri = tracking_uri or (None if config else os.environ.get("MLFLOW_TRACKING_URI"))
    if config is not None or (uri is None and _CONFIG.is_file()):
        loaded = load_config(config or _CONFIG)
        tracking, uri = loaded.tracking, uri or tracking_uri_of(loaded)
    return Place(absolute_uri(uri or tracking.uri, Path()), name or tracking.model_name)


def registry_at(place: Place) -> Registry:
    """Return the registry of a place; raise ConfigError where a local store is not there, which is then not made."""
    if place.uri.startswith(SQLITE) and not Path(place.uri.removeprefix(SQLITE)).is_file():
        raise ConfigError(f"{place.uri}: there is no such file; expected the tracker's, which `fraud retrain` makes")
    return open_registry(place.uri, place.name)


def bundle_at(text: str, place: Place, folder: Path) -> Bundle:
    """Return the bundle that a person names: a directory, an alias such as champion, a version's number or its digits.

    folder: where a version is downloaded to. Raises ConfigError where there is no such thing.
    """
    if (Path(text) / MANIFEST).is_file():
        return load_bundle(text)
    registry = registry_at(place)
    version = registry.at(text) or registry.named(text)
    return load_bundle(registry.fetch(version, folder))


def list_models(place: Place, screen: Screen) -> Json:
    """Return the versions of a model, the newest first, and the numbers of its champion, challenger and previous."""
    registry = registry_at(place)
    versions, pending = registry.versions(), registry.pending()
    where = f"Model {place.name} at {without_password(place.uri)}"
    if versions:
        header = ["version", "bundle", "model", "alias", "champion since", "newest event", "AP", "recall at budget"]
        screen.table(where, header, [_row(version) for version in versions])
    else:
        screen.say(f"{where} has no version yet: `fraud retrain CONFIG` makes the first")
    if pending is not None:
        screen.warn(
            f"a {pending.kind} of version {pending.champion} was cut short at {pending.at}; the next `fraud retrain`, "
            "`promote` or `rollback` finishes it"
        )
    by_alias = {alias: version.number for version in versions for alias in version.aliases}
    return {
        "name": place.name,
        "champion": by_alias.get("champion"),
        "challenger": by_alias.get("challenger"),
        "previous": by_alias.get("previous"),
        "pending": None if pending is None else asdict(pending),
        "versions": [_document(version) for version in versions],
    }


def promote_version(place: Place, version: str, screen: Screen, *, because: str) -> Json:
    """Return who is the champion now and who was, after a version, by number or bundle, was made it without a gate.

    The directory of a bundle becomes a version first, with a run of its own: the way in for a bundle that needs another
    stored state than the champion's.

    Raises ConfigError where there is no such version, BundleError where what the tracker holds of it is not whole.
    """
    if (Path(version) / MANIFEST).is_file():
        version = _registered(Path(version), place, screen).number
    registry = registry_at(place)
    registry.finish_pending()
    promoted, before = registry.named(version), registry.champion()
    with tempfile.TemporaryDirectory() as folder:
        registry.fetch(promoted, Path(folder))
    if before is not None and before.number == promoted.number:
        screen.say(f"{promoted} of the model {place.name} is the champion already")
    else:
        registry.promote(promoted, expected_champion=None if before is None else before.number, reason=because)
        screen.say(f"{promoted} is the champion of the model {place.name}; before: {before or 'none'}")
    return {"name": place.name, "champion": _document(registry.named(promoted.number)), "before": _numbered(before)}


def _registered(directory: Path, place: Place, screen: Screen) -> Version:
    """Return the version of a bundle that stands in a directory: tracked and registered, once."""
    bundle = load_bundle(directory)
    own = bundle.scorer.config
    config = replace(own, tracking=replace(own.tracking, uri=place.uri, model_name=place.name))
    test = bundle.metrics.get("test", {})
    record = RunRecord(
        name=bundle.manifest.name,
        parameters=parameters_of(config),
        history=(),
        metrics={f"test_{name}": float(value) for name, value in test.items() if isinstance(value, int | float)},
        tags={"fingerprint": bundle.manifest.fingerprint, "model": bundle.manifest.name},
        fit_s=0.0,
        id=f"bundle-{bundle.version}",
    )
    run_id = track(record, directory, config, screen)
    if run_id is None:
        raise ConnectionError(f"the tracker at {without_password(place.uri)} did not take {directory}")
    return open_registry(place.uri, place.name).add(directory, run_id=run_id, tags={})


def roll_back(place: Place, screen: Screen) -> Json:
    """Return who was the champion and who, the one before it, is it again."""
    was, now = registry_at(place).rollback()
    screen.say(f"{now} is the champion of the model {place.name} again; rolled back: {was}")
    return {"name": place.name, "from": was.number, "to": now.number, "champion": _document(now)}


def _row(version: Version) -> list[str]:
    figures = figures_of(version)
    state = "rolled back" if version.was_rolled_back else ""
    return [
        version.number,
        version.bundle or "no bundle",
        version.tags.get(MODEL_TAG, "-"),
        ", ".join(version.aliases) or state or "-",
        _minute(version.since),
        _minute(version.tags.get(NEWEST_EVENT)),
        interval(figures.get("ap"), figures.get("ap_ci")),
        interval(figures.get("recall_at_budget"), None),
    ]


def _minute(instant: str | None) -> str:
    """Return an RFC 3339 time in UTC to the minute, "2026-03-01 14:05"."""
    return instant[:16].replace("T", " ") if instant else "-"


def _document(version: Version) -> Json:
    tags = version.tags
    return {
        "version": version.number,
        "bundle": version.bundle,
        "model": tags.get(MODEL_TAG),
        "aliases": list(version.aliases),
        "champion_since": version.since,
        "rolled_back_at": tags.get(ROLLED_BACK),
        "reason": tags.get(REASON),
        "newest_event": tags.get(NEWEST_EVENT),
        "newest_label": tags.get(NEWEST_LABEL) or None,
        "run_id": version.run_id,
        "test": dict(figures_of(version)),
    }


def _numbered(version: Version | None) -> str | None:
    return None if version is None else version.number
