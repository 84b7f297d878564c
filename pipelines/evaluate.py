"""`fraud evaluate`: the figures of a saved bundle on a labelled log."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fraud.bundle import Bundle, load_bundle
from fraud.chunks import labelled_chunks
from fraud.config import Config, state_hash
from fraud.enrich import empty_carry
from fraud.errors import ConfigError, DataError
from fraud.logs import Log, check_usable, read_log
from fraud.metrics import Examples, evaluate
from fraud.scoring import enrich_spec, score_events
from fraud.splits import supervise, time_cuts
from fraud.tables import tables_of
from pipelines.console import Screen
from pipelines.train import show_figures

Json = dict[str, Any]  # Any: JSON
Part = Literal["train", "valid", "test"]


def evaluate_bundle(directory: Path, config: Config, *, part: Part, screen: Screen) -> Json:
    """Return the figures of a bundle on one part of a labelled log, under that log's split and budget."""
    started = time.monotonic()
    bundle = load_bundle(directory)
    examples, threshold = judged_examples(bundle, config, part)
    policy = bundle.scorer.policy
    metrics = evaluate(
        examples,
        alert_budget=config.policy.alert_budget,
        threshold=threshold,
        costs=policy.costs,
        seed=config.training.seed,
    )
    document = metrics.to_json() | {
        "model": bundle.manifest.name,
        "version": bundle.version,
        "part": part,
        "fit_s": None,
        "seconds": round(time.monotonic() - started, 3),
    }
    show_figures({bundle.manifest.name: document}, screen)
    return document


def part_of(text: str) -> Part:
    """Return the named part of the split; raise ConfigError for another name."""
    if text not in ("train", "valid", "test"):
        raise ConfigError(f"--part {text!r}: expected train, valid or test")
    return text


def judged_examples(bundle: Bundle, config: Config, part: Part) -> tuple[Examples, float]:
    """Return the examples of one part, scored by the bundle, and the threshold of its policy."""
    if config.labels is None:
        raise ConfigError("[labels] is missing: evaluation needs to know what is fraud")
    if state_hash(config) != state_hash(bundle.scorer.config):
        raise ConfigError(
            "the bundle was made for another [log], [fields] or [sessions] than this configuration declares; "
            f"see {bundle.path / 'config.toml'}"
        )
    with closing(read_log(config)) as log:
        check_usable(log)
        return _examples(bundle, config, part, log), bundle.scorer.policy.review_at


def _examples(bundle: Bundle, config: Config, part: Part, log: Log) -> Examples:
    cuts = time_cuts(config.split, log.time_us)
    tables = tables_of(log, config)
    spec = enrich_spec(config)
    columns: dict[str, list[np.ndarray]] = {"score": [], "label": [], "user": [], "amount": []}
    n_users = 0
    for enriched, labels, known, part_N in labelled_chunks(log, config, as_of_us=cuts.as_of_us):
        assert labels is not None  # the configuration has labels
        assert known is not None
        supervision = supervise(enriched, labels, known, cuts, config, part_N)
        wanted_N = {"train": supervision.trains_N, "valid": supervision.validates_N, "test": supervision.tests_N}[part]
        events = enriched.events
        scored, _ = score_events(bundle.scorer, events, empty_carry(events.n_users, spec), tables)
        columns["score"].append(scored.score_N[wanted_N])
        columns["label"].append(supervision.label_N[wanted_N])
        columns["user"].append(events.user_codes()[wanted_N].astype(np.int64) + n_users)
        if events.amount is not None:
            columns["amount"].append(events.amount[wanted_N])
        n_users += events.n_users
    if not sum(len(column) for column in columns["score"]):
        raise DataError(f"the {part} part of the log has no labelled decision event")
    return Examples(
        score_N=np.concatenate(columns["score"]),
        label_N=np.concatenate(columns["label"]),
        user_N=np.concatenate(columns["user"]),
        amount_N=np.concatenate(columns["amount"]) if columns["amount"] else None,
    )
