"""`fraud retrain`: a challenger on the newest data, judged beside the champion, promoted or refused with the reason.

Killed at any point it is taken up by the next call: the training from its last checkpoint, a tracked run by the id of
its record, a version by its bundle, a promotion by what was written ahead of it. The registry's aliases are the truth.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config
from fraud.errors import ConfigError
from fraud.gate import Gate, parse_gate
from fraud.instants import DAY_US, as_of
from fraud.label_guard import SourceReport
from fraud.logs import Log, check_usable, read_log
from fraud.metrics import Examples
from fraud.periods import TooFewPositives, lived, with_periods
from pipelines.challenge import (
    Judgement,
    Made,
    challenge_periods,
    is_same_model,
    judge_challenger,
    make_challenger,
    needs_warm,
    watched_sources,
    with_gate,
)
from pipelines.console import Screen, interval
from pipelines.files import written_whole
from pipelines.registry import Registry, Version, open_registry
from pipelines.retrain_memory import (
    PROMOTED,
    REFUSED,
    RETRAIN_KEY,
    UNCHANGED,
    finish,
    remember,
    retrain_key,
    unchanged,
    verdict,
    verdict_record,
)
from pipelines.retrain_page import verdict_page
from pipelines.tracking import track, track_parent, tracking_uri

Json = dict[str, Any]  # Any: JSON
_Examples = dict[str, Examples]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retraining:
    """What one call works on. key: of the data and settings; sources: of labels; work: a folder beside the config."""

    config: Config
    log: Log
    gate: Gate
    key: str
    registry: Registry
    champion: Version | None
    champion_bundle: Bundle | None
    sources: tuple[SourceReport, ...]
    work: Path
    screen: Screen


def retrain(
    config: Config, *, promote_if: str | None, accepted_sources: Sequence[str], html: Path | None, screen: Screen
) -> Json:
    """Return the verdict on a challenger trained on the newest data: {"verdict": "promoted" | "refused" | "unchanged"}.

    Raises ConfigError, DataError; ConnectionError where the tracker is away: the champion goes on, and what was trained
    is kept for the next call.
    """
    started = time.monotonic()
    config = with_gate(config, promote_if)
    gate = parse_gate(config.retrain.promote_if)
    registry = open_registry(tracking_uri(config), config.tracking.model_name)
    finish(registry)
    work = work_folder(config)
    if html is not None:
        _check_page(html)
    # Before the log is read: a row that comes in between is then in the model and not in the key, and never forgotten.
    key = retrain_key(config, accepted_sources)
    document, examples = unchanged(registry, key), dict[str, Examples]()
    if document is None:
        with closing(read_log(config)) as whole:
            check_usable(whole)
            log, config = lived(whole, config)
            _warn(log, config, screen)
            champion = registry.champion()
            bundle = None if champion is None else load_bundle(registry.fetch(champion, work / "champion"))
            one = _Retraining(
                config=config,
                log=log,
                gate=gate,
                key=key,
                registry=registry,
                champion=champion,
                champion_bundle=bundle,
                sources=_watched(log, config, bundle, accepted_sources),
                work=work,
                screen=screen,
            )
            document, examples = _decided(one)
    document["seconds"] = round(time.monotonic() - started, 3)
    _show(document, screen)
    if html is not None and document["verdict"] != UNCHANGED:
        with written_whole(html) as aside:
            aside.write_text(verdict_page(document, examples), encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    return document


def _check_page(html: Path) -> None:
    """Raise OSError where the page could not be written in the end: that must not be found out after a promotion."""
    with written_whole(html.with_name(f".{html.name}.check")) as aside:
        aside.touch()
    html.with_name(f".{html.name}.check").unlink()


def _warn(log: Log, config: Config, screen: Screen) -> None:
    """Say what makes young decisions look honest."""
    as_of_us = as_of(config.split)
    assert config.labels is not None  # `lived` sees to both
    assert as_of_us is not None
    if config.labels.delay is None and config.labels.path is not None:
        screen.warn("labels.delay is not set: a decision that nobody has reported yet counts as honest at once")
    if as_of_us > int(log.time_us.max()) + DAY_US:
        screen.warn(
            f"split.as_of = {config.split.as_of} is more than a day after the newest event: recent frauds that nobody "
            "had reported when the labels were written count as honest"
        )


def work_folder(config: Config) -> Path:
    """Return the folder in which the model of a configuration is retrained; one call at a time may use it."""
    return config.root / f".{config.tracking.model_name}.retrain"


def _decided(one: _Retraining) -> tuple[Json, _Examples]:
    """Return what came of it, done and remembered, and the examples that both were judged on, if they were."""
    document, examples = _judged(one)
    document["labels"] = [
        {"source": report.source, "held_back": report.is_held_back, "text": report.text} for report in one.sources
    ]
    # What was refused before training is looked at again each time: it costs little, and it stands until it is mended.
    if document["version"] is not None:
        remember(one.registry, one.key, document, one.champion, is_done=True)
    return document, examples


def _judged(one: _Retraining) -> tuple[Json, _Examples]:
    held = [report.text for report in one.sources if report.is_held_back]
    if held:
        words = "; ".join(held) + ". Look at them: --accept-source NAME takes a source as it is"
        return verdict(REFUSED, "labels_held_back", words, champion=_named(one)), {}
    other_state = None if one.champion_bundle is None else needs_warm(one.config, one.champion_bundle)
    if other_state is not None:
        return verdict(REFUSED, "needs_warm", other_state, champion=_named(one)), {}
    try:
        periods = challenge_periods(one.log, one.config, one.champion_bundle)
    except TooFewPositives as error:
        return verdict(REFUSED, "too_few_positives", str(error), champion=_named(one)), {}
    config = with_periods(one.config, periods)
    one.screen.say(
        f"training {config.model.name} up to {config.split.train_until}, judging on {periods.n_judged:,} known frauds "
        f"since {config.split.valid_until}, against {one.champion or 'no champion'}"
    )
    if one.champion is None and one.registry.versions():
        one.screen.warn("no version is the champion, though there are some: this one is judged as a first model")
    made = make_challenger(config, one.work / "challenger", one.screen)
    if one.champion_bundle is not None and is_same_model(made.bundle, one.champion_bundle):
        text = f"trained again, the model is the very one of {one.champion}: there is nothing to judge"
        return verdict(UNCHANGED, "same_model", text, champion=_named(one)), {}
    judgement = judge_challenger(made.bundle, one.champion_bundle, one.log, config, one.gate)
    document = judgement.to_json() | {
        "verdict": PROMOTED if judgement.passed else REFUSED,
        "reason": judgement.reason,
        "text": judgement.text,
        "periods": periods.to_json(),
        "labels": [],
    }
    document["challenger"] |= {"model": made.bundle.manifest.name, "bundle": made.bundle.version}
    document["champion"] = None if one.champion is None else document["champion"] | _named(one)
    examples = {"challenger": judgement.examples}
    examples |= {} if judgement.champion_examples is None else {"champion": judgement.champion_examples}
    version = _registered(one, made, judgement, document, examples, config)
    document["version"] = document["challenger"]["version"] = version.number
    if judgement.passed:
        document |= _promoted(one, version, document)
    return document, examples


def _promoted(one: _Retraining, version: Version, document: Json) -> Json:
    """Return what changes in the document: nothing, or a refusal where it was judged against another champion."""
    expected = None if one.champion is None else one.champion.number
    now = one.registry.champion()
    if (None if now is None else now.number) in (expected, version.number):
        remember(one.registry, one.key, document, one.champion, is_done=False)
        one.registry.promote(version, expected_champion=expected, reason=document["text"])
        return {}
    text = f"{now or 'nobody'} is the champion now, and it was judged against {one.champion or 'nobody'}; call it again"
    return {"verdict": REFUSED, "reason": "champion_changed", "text": text}


def _registered(
    one: _Retraining, made: Made, judgement: Judgement, document: Json, examples: _Examples, config: Config
) -> Version:
    """Return the challenger's version: the verdict and its run tracked, the version made and named challenger."""
    against = "nobody" if one.champion is None else one.champion.number
    record_id = f"retrain-{hashlib.sha256(f'{one.key} {against}'.encode()).hexdigest()[:24]}"
    files = {
        "verdict.json": json.dumps(document, indent=1, allow_nan=False),
        "verdict.html": verdict_page(document, examples),
    }
    for name, text in files.items():
        with written_whole(one.work / name) as aside:
            aside.write_text(text, encoding="utf-8")
    record = verdict_record(document, judgement, config, record_id=record_id, key=one.key, fit_s=made.record.fit_s)
    # The parent first: the challenger's run looks for it.
    told = track_parent(record, [one.work / name for name in files], config, one.screen, keep_as=one.work / "verdict")
    of_challenger = replace(made.record, id=f"{record_id}-challenger", parent=record_id)
    run_id = None if told is None else track(of_challenger, made.bundle.path, config, one.screen)
    if run_id is None:
        raise ConnectionError(
            f"the tracker at {tracking_uri(config)} did not take the challenger, so the champion goes on; what was "
            f"trained is kept in {one.work}: call `fraud retrain` again"
        )
    version = one.registry.add(made.bundle.path, run_id=run_id, tags={RETRAIN_KEY: one.key})
    one.registry.challenge(version)
    return version


def _named(one: _Retraining) -> Json | None:
    if one.champion is None or one.champion_bundle is None:
        return None
    name = one.champion_bundle.manifest.name
    return {"version": one.champion.number, "bundle": one.champion.bundle, "model": name}


def _watched(log: Log, config: Config, champion: Bundle | None, accepted: Sequence[str]) -> tuple[SourceReport, ...]:
    """Return the reports of the label sources, without those that somebody accepted."""
    as_of_us = as_of(config.split)
    assert as_of_us is not None  # `lived` sees to it
    reports = watched_sources(log, champion, as_of_us=as_of_us)
    unknown = sorted(set(accepted) - {report.source for report in reports})
    if unknown:
        known = ", ".join(report.source for report in reports) or "none (labels.source names their column)"
        raise ConfigError(f"--accept-source {unknown[0]!r}: no such source of labels; known here: {known}")
    return tuple(report for report in reports if report.source not in accepted)


def _show(document: Mapping[str, Any], screen: Screen) -> None:
    both = [(name, document[name]) for name in ("challenger", "champion") if "ap" in (document[name] or {})]
    if both:
        rows = [
            [
                f"{name} (version {one['version']}, {one['model']})",
                interval(one["ap"], one["ap_ci"]),
                interval(one["recall_at_budget"], one["recall_at_budget_ci"]),
                interval(one["ece"], None),
                interval(one["mean_score_over_base_rate"], None),
            ]
            for name, one in both
        ]
        title = f"Judged period: {both[0][1]['n_positive']:,} known frauds (95 % intervals by user)"
        screen.table(title, ["", "AP", "recall at budget", "ECE", "score/base"], rows)
    for clause in document["gate"]:
        screen.say(f"{'holds' if clause['passed'] else 'FAILS'}  {clause['text']}: {clause['reason']}")
    for check in document["checks"]:
        screen.say(f"{'holds' if check['passed'] else 'FAILS'}  {check['name']}: {check['text']}")
    screen.say(f"{document['verdict']} ({document['reason']}): {document['text']}")
