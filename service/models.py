"""The bundle that answers: loaded aside, held against the stored state, then swapped in by one reference.

A tick takes `holder.current` once, so each answer is of exactly one bundle. A bundle that does not verify, or that was
made for another state, is refused, counted and logged once; the one before goes on. Who asks for a swap, and when, is
not known here: see `service.follow`.
"""

from __future__ import annotations

import logging
import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config, stored_state_hash
from fraud.decisions import policy_version
from fraud.errors import BundleError, ConfigError, FraudError
from fraud.manifest import MANIFEST
from service.memory import give_back_memory
from service.schemas import Schema

LINK = "current"
ACCEPTED = "accepted"
BAD_BUNDLE, NEEDS_WARM, NO_CLOCK, NOT_CAUSAL = "bad_bundle", "needs_warm", "no_clock", "not_causal"
_N_PERCENTILES = 101
# What reading forged or half-written files can raise beside our own errors. A swap that fails must not end the thread
# that asked for it, and the text is logged, so nothing is hidden.
_UNLOADABLE = (FraudError, OSError, MemoryError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)

_log = logging.getLogger(__name__)


class RefusedBundle(BundleError):
    """A bundle that cannot answer here. code: BAD_BUNDLE, NEEDS_WARM, NO_CLOCK or NOT_CAUSAL."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class SwapOutcome(NamedTuple):
    """What came of a swap. code: ACCEPTED, or why not, as in RefusedBundle. version: of the bundle that answers now."""

    accepted: bool
    code: str
    reason: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A verified bundle with all that an answer takes from it but the score.

    sha256: of manifest.json. policy_version: as `fraud.decisions.policy_version` says. percentiles: 101 numbers that do
    not fall, the percentiles of the scores in the bundle's reference. known_types, known_categories: what the model was
    trained on, by field in the order of [fields] categorical.
    """

    bundle: Bundle
    sha256: str
    policy_version: str
    schema: Schema
    percentiles: tuple[float, ...]
    known_types: frozenset[str]
    known_categories: tuple[tuple[str, frozenset[str]], ...]

    @property
    def name(self) -> str:
        """Return the name of the model, as in every answer."""
        return self.bundle.manifest.name

    @property
    def version(self) -> str:
        """Return the version of the bundle, the first digits of `sha256`."""
        return self.bundle.version

    def risk_percentile(self, score: float) -> float:
        """Return the `percentile` of a score in the bundle's reference."""
        return percentile(self.percentiles, score)


class ModelHolder:
    """The bundle that answers, and how many swaps were accepted and refused, by code.

    current: read once a tick. state_hash: what every bundle here must have been made for.
    """

    def __init__(self, directory: Path, *, state_hash: str | None, schema_of: Callable[[Config], Schema]) -> None:
        """Load the first bundle. state_hash: the store's; None where the store is new and the bundle decides.

        Raises RefusedBundle.
        """
        self.state_hash = state_hash
        self._schema_of = schema_of
        self._counts: Counter[str] = Counter()
        self._last_refusal = ""
        self.current = self.load(directory)
        self.state_hash = stored_state_hash(self.current.bundle.scorer.config)
        give_back_memory()  # what the checks needed: 2 to 10 MB

    @property
    def counts(self) -> Mapping[str, int]:
        """Return how many swaps were tried so far, by the code of their outcome; the first bundle is none."""
        return dict(self._counts)

    def load(self, directory: Path) -> Served:
        """Return what a directory holds, verified and fit for the stored state; what answers stays as it is.

        The hash covers all of [sessions], max_events too. Raises RefusedBundle.
        """
        try:
            bundle = load_bundle(directory)
            percentiles = _percentiles(bundle)
        except _UNLOADABLE as error:
            raise RefusedBundle(BAD_BUNDLE, str(error) or repr(error)) from None
        config, made_for = bundle.scorer.config, stored_state_hash(bundle.scorer.config)
        if not config.log.has_clock:
            raise RefusedBundle(NO_CLOCK, f'{directory}: log.time = "position": a request tells times, not positions')
        if not config.model.causal:
            raise RefusedBundle(NOT_CAUSAL, f"{directory}: model.causal = false: its scores wait for later events")
        if self.state_hash is not None and made_for != self.state_hash:
            raise RefusedBundle(
                NEEDS_WARM,
                f"{directory}: made for the state {made_for[:12]}, but the store holds {self.state_hash[:12]} "
                "([log], [fields], [sessions] or labels.delay differ): run `fraud warm` on a new store first",
            )
        try:
            schema = self._schema_of(config)
        except ConfigError as error:
            raise RefusedBundle(BAD_BUNDLE, f"{directory}: {error}") from None
        return Served(
            bundle=bundle,
            sha256=bundle.sha256,
            policy_version=policy_version(bundle.scorer.policy),
            schema=schema,
            percentiles=percentiles,
            known_types=frozenset(bundle.scorer.model.vocabulary.types),
            known_categories=_known_categories(bundle),
        )

    def try_swap(self, directory: Path) -> SwapOutcome:
        """Return what came of loading a directory and, if it is fit, letting it answer from the next tick on.

        One caller at a time. The same refusal as the last is counted but not logged again.
        """
        try:
            served = self.load(directory)
        except RefusedBundle as error:
            return self.refuse(error.code, str(error))
        before, self.current = self.current, served
        self._counts[ACCEPTED] += 1
        self._last_refusal = ""
        _log.info("model swapped name=%s version=%s before=%s", served.name, served.version, before.version)
        return SwapOutcome(accepted=True, code=ACCEPTED, reason="", version=served.version)

    def refuse(self, code: str, reason: str) -> SwapOutcome:
        """Return the outcome of a swap that did not get so far as to load a bundle; counted and logged as any other."""
        self._counts[code] += 1
        if reason != self._last_refusal:
            self._last_refusal = reason
            _log.warning("model refused code=%s kept=%s reason=%s", code, self.current.version, reason)
        return SwapOutcome(accepted=False, code=code, reason=reason, version=self.current.version)


def percentile(scores: Sequence[float], score: float) -> float:
    """Return how many per cent of the scores whose 101 percentiles these are lie at or below a score, 0 .. 100.

    Never falls as the score rises; linear between two percentiles, and at a run of equal ones the last of the run. 0
    below the first of them, 100 from the last one on.
    """
    n_at_most = bisect_right(scores, score)
    if n_at_most == 0:
        return 0.0
    if n_at_most == len(scores):
        return 100.0
    low, high = scores[n_at_most - 1], scores[n_at_most]
    return n_at_most - 1 + (score - low) / (high - low)


def bundle_directory(path: Path) -> Path:
    """Return the bundle at a path: the path itself or, in a folder of versions, what its link `current` names now.

    Links are followed once, here, so that what is read next is one bundle even if a link is moved meanwhile. Raises
    ConfigError where there is neither.
    """
    for place in (path, path / LINK):
        if (place / MANIFEST).exists():
            return Path(os.path.realpath(place))
    raise ConfigError(f"{path}: expected a bundle ({MANIFEST}), or a folder of bundles with a link {LINK!r} to one")


def _known_categories(bundle: Bundle) -> tuple[tuple[str, frozenset[str]], ...]:
    values_of = {field.name: field.values for field in bundle.scorer.model.vocabulary.fields}
    names = bundle.scorer.config.fields.categorical
    return tuple((name, frozenset(str(value) for value in values_of[name])) for name in names)


def _percentiles(bundle: Bundle) -> tuple[float, ...]:
    cells = bundle.reference.get("score_percentiles")
    values = tuple(float(cell) for cell in cast(list[Any], cells)) if isinstance(cells, list) else ()  # Any: JSON
    rises = all(low <= high for low, high in pairwise(values))
    if len(values) != _N_PERCENTILES or not rises or not all(map(math.isfinite, values)):
        raise BundleError(
            f"{bundle.path}: reference.json: score_percentiles: expected {_N_PERCENTILES} finite numbers that rise"
        )
    return values
