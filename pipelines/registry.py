"""The versions of a model and who of them answers: MLflow's registry, in which the alias `champion` is the truth.

A version is the bundle of a tracked run. How the champion changes: `transitions`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fraud.bundle import sync_directory
from fraud.errors import BundleError, ConfigError
from fraud.manifest import VERSION_DIGITS
from pipelines.files import replace_directory
from pipelines.mlflow_client import SQLITE, alone, answered, asked_once, client_of, download, found
from pipelines.pyfunc import BUNDLE
from pipelines.transitions import (
    BEFORE,
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    SINCE,
    Transition,
    aliases_of,
    carry_out,
    finish_pending,
    pending,
    promotion,
    rollback,
)
from pipelines.versions import BUNDLE_TAG, Version, check_bundle, facts_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

_PAUSE_S = 0.5  # many times what a transition's calls take, `carry_out`
_NOT_IN_NAMES = "/:@'\""  # MLflow refuses the first two; the others mean something in a URI or a filter


def open_registry(uri: str, name: str) -> Registry:
    """Return the registry of the model `name` at a tracking URI; a local SQLite store that is not there is made.

    Raises ConfigError for a name that no registry takes, ConnectionError where the tracker does not answer.
    """
    if not name.strip() or set(name) & set(_NOT_IN_NAMES):
        raise ConfigError(f"tracking.model_name = {name!r}: expected a name without any of {' '.join(_NOT_IN_NAMES)}")
    with answered(uri):
        return Registry(client_of(uri), uri, name)


@dataclass(frozen=True, slots=True)
class Registry:
    """The versions of one model. Every method raises ConnectionError where the tracker does not answer."""

    client: MlflowClient
    uri: str
    name: str

    def champion(self) -> Version | None:
        """Return the version that is to answer."""
        return self.at(CHAMPION)

    def challenger(self) -> Version | None:
        """Return the version that was last to be judged and is not promoted."""
        return self.at(CHALLENGER)

    def previous(self) -> Version | None:
        """Return the version that a rollback goes back to."""
        return self.at(PREVIOUS)

    def at(self, alias: str) -> Version | None:
        """Return the version that an alias names."""
        with answered(self.uri):
            number = aliases_of(self.client, self.name).get(alias)
        return None if number is None else self.numbered(number)

    def numbered(self, number: str) -> Version | None:
        """Return the version of a number."""
        if not number.isdecimal():
            return None
        with answered(self.uri):
            version = found(lambda: self.client.get_model_version(self.name, number))
            return None if version is None else self._version(version, aliases_of(self.client, self.name))

    def versions(self) -> tuple[Version, ...]:
        """Return all versions, the newest first."""
        with answered(self.uri):
            aliases = aliases_of(self.client, self.name)
            page = self.client.search_model_versions(f"name = '{self.name}'")
            there = list(page)
            while page.token:
                page = self.client.search_model_versions(f"name = '{self.name}'", page_token=page.token)
                there += page
            versions = [self._version(version, aliases) for version in there]
        return tuple(sorted(versions, key=lambda version: -int(version.number)))

    def of_bundle(self, bundle: str) -> Version | None:
        """Return the version of a bundle, named by its 12 hex digits; the first where there are several."""
        return next((version for version in reversed(self.versions()) if version.bundle == bundle), None)

    def named(self, text: str) -> Version:
        """Return the version that a person names by its number or its bundle; raise ConfigError where there is none."""
        version = self.of_bundle(text) if len(text) == VERSION_DIGITS else self.numbered(text)
        if version is None:
            newest = ", ".join(f"{version.number} = {version.bundle}" for version in self.versions()[:5])
            raise ConfigError(
                f"version {text!r}: the model {self.name!r} has no such version; expected a number or the "
                f"{VERSION_DIGITS} digits of a bundle, the newest: {newest or 'none yet'}"
            )
        return version

    def add(self, bundle: Path, *, run_id: str, tags: Mapping[str, str]) -> Version:
        """Return the version of a bundle, made of the model that its run logged; the one that is there, where one is.

        Raises ConfigError where the run holds no whole model of this bundle.
        """
        facts = facts_of(bundle)
        version = self.of_bundle(facts[BUNDLE_TAG])
        if version is not None:
            return version
        with answered(self.uri), asked_once():
            model = self._logged_model(run_id, facts[BUNDLE_TAG])
            self._make_model()
            # A version comes with its tags, or not at all. Its source is the place of the files, not "models:/ID": that
            # a local store would look up in the tracker of the environment.
            made = self.client.create_model_version(
                self.name,
                model.artifact_location,
                run_id,
                tags={**facts, **tags},
                await_creation_for=0,
                model_id=model.model_id,
            )
            return self._version(made, aliases_of(self.client, self.name))

    def challenge(self, version: Version) -> None:
        """Give a version the alias `challenger`."""
        with answered(self.uri):
            self.client.set_registered_model_alias(self.name, CHALLENGER, version.number)

    def fetch(self, version: Version, folder: Path) -> Path:
        """Return the verified bundle of a version, standing whole in folder/BUNDLE; downloaded where it does not yet.

        One process a folder at a time. Raises BundleError where the tracker holds something else, OSError for the disk.
        """
        if not version.bundle:
            raise BundleError(f"version {version.number} of the model {self.name!r} is no bundle of this library")
        path = folder / version.bundle
        if path.exists():
            try:
                check_bundle(path, version)
                return path
            except BundleError:
                pass  # damaged: it is replaced by a whole one
        work = folder / f".{version.bundle}.partial"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            with answered(self.uri):
                source = self.client.get_model_version_download_uri(self.name, version.number)
                copy = download(f"{source}/{BUNDLE}", work, uri=self.uri)
            check_bundle(copy, version)
            _sync(copy)
            replace_directory(copy, path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return path

    def promote(self, version: Version, *, expected_champion: str | None, reason: str) -> None:
        """Make a version the champion, and the champion the previous one; nothing where it is the champion already.

        expected_champion: the number of the champion that it was judged against. Raises ConfigError where another one
        is it now.
        """
        with answered(self.uri), alone(self.uri):
            finish_pending(self.client, self.name)
            champion = aliases_of(self.client, self.name).get(CHAMPION)
            if champion == version.number:
                return
            if champion != expected_champion:
                raise ConfigError(
                    f"the champion of the model {self.name!r} changed: version {champion or 'none'}, expected version "
                    f"{expected_champion or 'none'}; judge against the one that is it now"
                )
            change = promotion(champion, version.number, reason)
            carry_out(self.client, self.name, change, pause_s=self._pause_s)

    def note(self, tag: str, text: str) -> None:
        """Write a text beside the model as one of its tags; the model is made where it is not there yet."""
        with answered(self.uri):
            self._make_model()
            self.client.set_registered_model_tag(self.name, tag, text)

    def noted(self, tag: str) -> str | None:
        """Return a text written beside the model, None where there is none."""
        with answered(self.uri):
            model = found(lambda: self.client.get_registered_model(self.name))
        return None if model is None else model.tags.get(tag)

    def rollback(self) -> tuple[Version, Version]:
        """Return who was the champion, and the one before it, which is the champion again.

        A rollback that was cut short is finished, not done twice. Raises ConfigError where there is nothing to go back
        to.
        """
        with answered(self.uri), alone(self.uri):
            done = finish_pending(self.client, self.name)
            if done is None or done.kind != "rollback":
                done = self._rollback()
                carry_out(self.client, self.name, done, pause_s=self._pause_s)
        return self.named(str(done.replaced)), self.named(done.champion)

    def pending(self) -> Transition | None:
        """Return the promotion or rollback that was cut short."""
        with answered(self.uri):
            return pending(self.client, self.name)

    def finish_pending(self) -> Transition | None:
        """Return the promotion or rollback that was cut short, finished now."""
        with answered(self.uri), alone(self.uri):
            return finish_pending(self.client, self.name)

    @property
    def _pause_s(self) -> float:
        """Return how long a transition waits for others: not at all where `alone` holds them off."""
        return 0.0 if self.uri.startswith(SQLITE) else _PAUSE_S

    def _make_model(self) -> None:
        if found(lambda: self.client.get_registered_model(self.name)) is None:
            self.client.create_registered_model(self.name)

    def _rollback(self) -> Transition:
        champion, previous = self.champion(), self.previous()
        if champion is None:
            raise ConfigError(f"the model {self.name!r} has no champion; there is nothing to roll back")
        if previous is None or previous.number == champion.number:
            raise ConfigError(
                f"{champion} of the model {self.name!r} has none before it; there is nothing to go back to"
            )
        return rollback(champion.number, previous.number, self._before(previous, barred=champion.number))

    def _before(self, version: Version, *, barred: str) -> str | None:
        """Return the number of the last one that answered before a version and was not rolled back itself."""
        seen = {barred, version.number}
        number = version.tags.get(BEFORE)
        while number and number not in seen:
            seen.add(number)
            earlier = self.numbered(number)
            if earlier is not None and not earlier.was_rolled_back:
                return number
            number = None if earlier is None else earlier.tags.get(BEFORE)
        return None

    def _version(self, version: ModelVersion, aliases: Mapping[str, str]) -> Version:
        number, tags = str(version.version), dict(version.tags)
        named = tuple(sorted(alias for alias, of_number in aliases.items() if of_number == number))
        return Version(
            number=number,
            bundle=tags.get(BUNDLE_TAG) or self._bundle_of(version),
            aliases=named,
            run_id=version.run_id or "",
            since=tags.get(SINCE) if CHAMPION in named else None,
            tags=tags,
        )

    def _logged_model(self, run_id: str, bundle: str) -> LoggedModel:
        run = found(lambda: self.client.get_run(run_id))
        outputs = () if run is None or run.outputs is None else run.outputs.model_outputs
        models = [self.client.get_logged_model(output.model_id) for output in outputs]
        for model in models:
            if model.tags.get("bundle_version") == bundle and model.status == "READY":
                return model
        raise ConfigError(f"run {run_id!r}: holds no whole model of the bundle {bundle}; expected the run it came from")

    def _bundle_of(self, version: ModelVersion) -> str:
        """Return the bundle of a version that somebody made on MLflow's own page; "" where it is no bundle."""
        model_id = re.search(r"\bm-[0-9a-f]{32}\b", version.source or "")
        model = None if model_id is None else found(lambda: self.client.get_logged_model(model_id[0]))
        return "" if model is None else model.tags.get("bundle_version", "")


def _sync(directory: Path) -> None:
    """Flush a directory and all below it to disk."""
    for path in (*directory.rglob("*"), directory):
        if path.is_dir():
            sync_directory(path)
            continue
        with path.open("rb+") as file:
            os.fsync(file.fileno())
