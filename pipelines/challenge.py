"""A challenger made, and judged beside the champion on the newest frauds that are known to both; no registry here.

`fraud retrain` and `fraud backtest` make and judge by these functions, so that what is lived in a backtest is what a
retraining would have done.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fraud.bundle import Bundle
from fraud.chunks import chunks, entity_tables
from fraud.config import Config, stored_state_hash
from fraud.enrich import empty_carry, enrich
from fraud.gate import Contender, Gate, Ruling, rule_on
from fraud.instants import instant_text, instant_us
from fraud.judging import scored_examples
from fraud.label_guard import SourceReport, watch_sources
from fraud.logs import Log
from fraud.metrics import Examples, Metrics, evaluate
from fraud.pairing import mean_score_over_base_rate_ci
from fraud.periods import Periods, TooFewPositives, first_periods, retrain_periods
from fraud.scoring import Scorer, enrich_spec, score_events
from pipelines.console import Screen
from pipelines.tracking import RunRecord
from pipelines.train import prepared_for, publish, train_prepared

Json = dict[str, Any]  # Any: JSON
_TIMED_EVENTS = 20  # a request of ordinary length
_TIMINGS = 60  # of each scorer, in turns: the median of so many is within a few per cent on a busy machine
# Models of two kinds err on different events, so their difference is wider: at 300 frauds one better by two margins
# passed the default gate 33 of 50 times, at 600 45 times (`benchmarks/gate.py`).
_OF_ANOTHER_KIND = 2
_SAME_AP = 1e-3  # logits of another batch differ by 1e-6, which turns a few ties


class Check(NamedTuple):
    """One thing beside the gate that a challenger must show."""

    name: str
    passed: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Both scorers on the judged period, what the gate and the checks say, and the examples behind it.

    reason: "gate_passed" or "first_model"; else the first of "bundle_check", "gate_failed", "miscalibrated",
    "too_slow" that applies.
    """

    challenger: Metrics
    champion: Metrics | None
    rulings: tuple[Ruling, ...]
    checks: tuple[Check, ...]
    examples: Examples
    champion_examples: Examples | None

    @property
    def passed(self) -> bool:
        """Return True where the challenger may be promoted."""
        return all(ruling.passed for ruling in self.rulings) and all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """Return why, as a code."""
        failed = [check.name for check in self.checks if not check.passed]
        if "bundle_check" in failed:
            return "bundle_check"
        if not all(ruling.passed for ruling in self.rulings):
            return "gate_failed"
        return failed[0] if failed else ("first_model" if self.champion is None else "gate_passed")

    @property
    def text(self) -> str:
        """Return why, in words."""
        wrong = [ruling.reason for ruling in self.rulings if not ruling.passed]
        wrong += [check.text for check in self.checks if not check.passed]
        if wrong:
            return "; ".join(wrong)
        return "there was no champion, and the bundle's checks hold" if self.champion is None else "every clause holds"

    def to_json(self) -> Json:
        """Return the figures, the rulings and the checks as JSON takes them."""
        return {
            "challenger": self.challenger.to_json(),
            "champion": None if self.champion is None else self.champion.to_json(),
            "gate": [ruling.to_json() for ruling in self.rulings],
            "checks": [check._asdict() for check in self.checks],
        }


class Made(NamedTuple):
    """A challenger's bundle, and what the tracker is told of its training."""

    bundle: Bundle
    record: RunRecord


def challenge_periods(log: Log, config: Config, champion: Bundle | None) -> Periods:
    """Return the periods on which a challenger is trained, validated and judged.

    Raises TooFewPositives where the log does not hold enough known frauds, or not enough since the champion's own
    validation period: it has learned from those before, and would look better than it is. A challenger of another kind
    than the champion is judged on twice as many.
    """
    if champion is None:
        return first_periods(log, config)
    is_other_kind = champion.manifest.name != config.model.name
    positives = config.retrain.positives * (_OF_ANOTHER_KIND if is_other_kind else 1)
    periods = retrain_periods(log, config, positives=positives)
    learned_until_us = champion_learned_until(champion)
    if periods.valid_until_us < learned_until_us:
        raise TooFewPositives(
            f"the newest {positives} known frauds begin at {instant_text(periods.valid_until_us)}, but "
            f"the champion learned from all up to {instant_text(learned_until_us)}; expected as many after that "
            f"({'twice ' if is_other_kind else ''}retrain.positives), so wait for more labels"
        )
    return periods


def champion_learned_until(champion: Bundle) -> int:
    """Return the end of what a bundle was fitted and calibrated on, in microseconds: its newest event where unsaid."""
    periods = champion.metrics.get("periods")
    said = periods["valid_until"] if isinstance(periods, dict) else champion.manifest.newest_event
    return instant_us("the champion's valid_until", str(said))


def watched_sources(log: Log, champion: Bundle | None, *, as_of_us: int) -> tuple[SourceReport, ...]:
    """Return a report of each source of labels; those that the champion learned from are trusted."""
    if log.label_table is None:
        return ()
    periods = None if champion is None else champion.metrics.get("periods")
    trusted_us = instant_us("the champion's as-of", str(periods["as_of"])) if isinstance(periods, dict) else None
    return watch_sources(log.label_table, as_of_us=as_of_us, trusted_until_us=trusted_us)


def needs_warm(config: Config, champion: Bundle) -> str | None:
    """Return why a challenger of this configuration could not read the champion's stored state; None where it could."""
    old = champion.scorer.config
    if stored_state_hash(config) == stored_state_hash(old):
        return None
    sections = [name for name in ("log", "fields", "sessions") if getattr(config, name) != getattr(old, name)]
    named = ", ".join(f"[{name}]" for name in sections) or "[labels] (its path or delay)"
    return (
        f"{named} differ from the champion's, so the challenger would need another stored state: train it by `fraud "
        "train`, make its state by `fraud warm`, and serve it beside the champion"
    )


def is_same_model(one: Bundle, other: Bundle) -> bool:
    """Return True where two bundles decide alike on any log: model, calibration and policy are equal to the byte."""
    about = {"config.toml", "metrics.json", "reference.json", "golden.json", "MODEL_CARD.md"}
    mine, theirs = (
        {name: sha256 for name, sha256 in bundle.manifest.files.items() if name not in about} for bundle in (one, other)
    )
    return mine == theirs and one.scorer.config.decisions == other.scorer.config.decisions


def make_challenger(config: Config, out: Path, screen: Screen) -> Made:
    """Return the scorer of a configuration with periods, trained and its bundle written to `out`.

    A run that was killed is taken up from its working folder beside `out`, and ends with the same bytes.
    """
    work = out.with_name(f".{out.name}.work")
    prepared = prepared_for(config, work, screen)
    judged, record = train_prepared(prepared, config, work, screen)
    return Made(publish(judged, prepared, config, out), record)


def judge_challenger(challenger: Bundle, champion: Bundle | None, log: Log, config: Config, gate: Gate) -> Judgement:
    """Return what the gate and the checks say of a challenger, on the judged period of the configuration.

    Both are scored anew from their bundles, as production would. Raises DataError where the period has no example.
    """
    budget, price, seed = config.policy.alert_budget, config.policy.costs, config.training.seed
    contenders = {
        name: Contender(
            scored_examples(bundle.scorer, log, config, "test"),
            bundle.scorer.policy.review_at,
            bundle.scorer.policy.costs,
        )
        for name, bundle in (("challenger", challenger), ("champion", champion))
        if bundle is not None
    }
    figures = {
        name: evaluate(
            contender.examples,
            alert_budget=budget,
            threshold=contender.threshold,
            costs=contender.costs,
            price=price,
            seed=seed,
        )
        for name, contender in contenders.items()
    }
    examples = contenders["challenger"].examples
    checks = [_is_what_was_trained(challenger, figures["challenger"])]
    if champion is not None:
        checks += [
            _is_calibrated(examples, config),
            _is_fast(challenger.scorer, champion.scorer, log, config.retrain.max_slower),
        ]
    return Judgement(
        challenger=figures["challenger"],
        champion=figures.get("champion"),
        rulings=rule_on(
            gate, contenders["challenger"], contenders.get("champion"), alert_budget=budget, price=price, seed=seed
        ),
        checks=tuple(checks),
        examples=examples,
        champion_examples=contenders["champion"].examples if champion is not None else None,
    )


def _is_what_was_trained(challenger: Bundle, figures: Metrics) -> Check:
    """Return whether the bundle, read back, ranks the judged period as training said it did."""
    said = challenger.metrics.get("test", {}).get("ap")
    is_same = said is not None and figures.ap is not None and math.isclose(said, figures.ap, abs_tol=_SAME_AP)
    text = f"the bundle's AP on the judged period is {_digits(figures.ap)}, after training it was {_digits(said)}"
    return Check("bundle_check", is_same, text)


def _digits(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.6f}"


def _is_calibrated(examples: Examples, config: Config) -> Check:
    most = config.retrain.max_miscalibration
    ci = mean_score_over_base_rate_ci([examples], seed=config.training.seed)
    n_fraud = int(examples.label_N.sum())
    if ci is None or n_fraud == 0:
        return Check("miscalibrated", False, "no known fraud in the judged period: calibration cannot be told")
    ratio = float(examples.score_N.sum()) / n_fraud
    text = (
        f"the challenger's mean score is {ratio:.2f} [{ci[0]:.2f}, {ci[1]:.2f}] times the fraud rate; "
        f"expected from {1 / most:.2f} to {most:.2f} (retrain.max_miscalibration)"
    )
    return Check("miscalibrated", 1 / most <= ratio <= most, text)


def _is_fast(challenger: Scorer, champion: Scorer, log: Log, most: float) -> Check:
    ours_s, theirs_s = _score_times(challenger, champion, log)
    text = (
        f"one request takes the challenger {ours_s / theirs_s:.1f} times what it takes the champion "
        f"({ours_s * 1e3:.2f} against {theirs_s * 1e3:.2f} ms); expected at most {most:g} (retrain.max_slower)"
    )
    return Check("too_slow", ours_s <= most * theirs_s, text)


def _score_times(one: Scorer, other: Scorer, log: Log) -> tuple[float, float]:
    """Return the median seconds that each takes for the first events of one user, timed in turns."""
    chunk = next(iter(chunks(log))).events
    longest = int((chunk.user_starts[1:] - chunk.user_starts[:-1]).argmax())
    user = chunk.take_users(longest, longest + 1)
    is_first_N = user.user_codes() >= 0
    is_first_N[_TIMED_EVENTS:] = False
    events = user.keep(is_first_N)
    carry = empty_carry(events.n_users, enrich_spec(one.config))
    tables = entity_tables(enrich(events, carry, enrich_spec(one.config))[0], None, delay_us=None)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TIMINGS):
        for scorer, spent in ((one, times[0]), (other, times[1])):
            started = time.perf_counter()
            score_events(scorer, events, carry, tables)
            spent.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def with_gate(config: Config, promote_if: str | None) -> Config:
    """Return the configuration with another gate, where one is given."""
    return config if promote_if is None else replace(config, retrain=replace(config.retrain, promote_if=promote_if))
