"""One version of a model: what the registry knows of a bundle without holding it in the hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fraud.bundle import load_bundle
from fraud.errors import BundleError
from fraud.manifest import VERSION_DIGITS, json_object, read_manifest
from pipelines.transitions import ROLLED_BACK

# Tags of a version, made with it.
BUNDLE_TAG, MODEL_TAG = "fraud.bundle", "fraud.model"
NEWEST_EVENT, NEWEST_LABEL = "fraud.newest_event", "fraud.newest_label"
_FIGURES = "fraud.test"
_SHOWN = ("ap", "ap_ci", "recall_at_budget", "n_test", "n_positive")


class Version(NamedTuple):
    """One version. bundle: the first 12 hex digits of its manifest's sha256; since: RFC 3339, of the champion only."""

    number: str
    bundle: str
    aliases: tuple[str, ...]
    run_id: str
    since: str | None
    tags: Mapping[str, str]

    @property
    def was_rolled_back(self) -> bool:
        """Return whether it was rolled back and has not been promoted again since."""
        return ROLLED_BACK in self.tags

    def __str__(self) -> str:
        return f"version {self.number} (bundle {self.bundle})"


def figures_of(version: Version) -> Mapping[str, Any]:  # Any: JSON
    """Return the figures of a version's own test period, as far as they are known: ap, ap_ci, recall_at_budget …"""
    return json_object(version.tags.get(_FIGURES, "{}").encode(), _FIGURES)


def facts_of(bundle: Path) -> dict[str, str]:
    """Return the tags that tell of a bundle."""
    manifest, sha256 = read_manifest(bundle)
    test = json_object((bundle / "metrics.json").read_bytes(), f"{bundle}/metrics.json").get("test", {})
    return {
        BUNDLE_TAG: sha256[:VERSION_DIGITS],
        MODEL_TAG: manifest.name,
        NEWEST_EVENT: manifest.newest_event,
        NEWEST_LABEL: manifest.newest_label or "",
        _FIGURES: json.dumps({name: test[name] for name in _SHOWN if test.get(name) is not None}),
    }


def check_bundle(directory: Path, version: Version) -> None:
    """Raise BundleError where a directory is not the whole bundle of a version."""
    bundle = load_bundle(directory)
    if bundle.version != version.bundle:
        raise BundleError(f"{directory}: the bundle {bundle.version}, where {version} was expected")
