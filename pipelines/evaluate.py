"""`fraud evaluate`: the figures of a saved bundle on a labelled log."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config
from fraud.errors import ConfigError
from fraud.judging import Part, scored_examples
from fraud.logs import check_usable, read_log
from fraud.metrics import Examples, evaluate
from pipelines.console import Screen
from pipelines.train import show_figures

Json = dict[str, Any]  # Any: JSON


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
    with closing(read_log(config)) as log:
        check_usable(log)
        return scored_examples(bundle.scorer, log, config, part), bundle.scorer.policy.review_at
