"""Scorers side by side on the same examples: the leaderboard, paired differences, and which one validation picks.

What is given is judged already (`fraud.learning`), one fit for each scorer and seed; here figures become means over
seeds, intervals and words. The pick looks at the first half of the validation users alone; no test figure enters it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fraud.ablation import VARIANTS, Worth, open_histories, prepare_variant, variants_of, worth_of
from fraud.config import Config
from fraud.errors import DataError
from fraud.histories import DEFAULT_SAMPLE, histories
from fraud.judging import Judged, judge
from fraud.learning import FittedModel, check_periods
from fraud.lineup import DEFAULT_MODELS, Lineup, fits_of, lineup_of
from fraud.logs import Log
from fraud.metrics import DetectionDelay, Metrics, alerts, detection_delay
from fraud.pairing import Difference, Ranked, differences, mean_score_over_base_rate_ci, ranked
from fraud.preparation import Prepared, prepare
from fraud.ranking import Interval, LabelArray, n_within_budget, percentile_interval

Json = dict[str, Any]  # Any: JSON
_FEW_FRAUDS = 10  # that choose between scorers
_MEANS = frozenset({"ap", "auc", "recall_at_budget", "precision_at_budget", "alert_rate", "recall_at_threshold"}) | {
    "money_saved",
    "ece",
    "mean_score_over_base_rate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the leaderboard: means over the seeds, intervals over users.

    delay is None where the log cannot tell it; choice_ap, the AP on the first half of the validation users, where that
    half holds no fraud. fit_s: seconds of one fit, None where nobody measured.
    """

    metrics: Metrics
    mean_score_over_base_rate_ci: Interval | None
    delay: DetectionDelay | None
    ap_by_seed: tuple[float, ...] | None
    choice_ap: float | None
    fit_s: float | None

    def to_json(self) -> Json:
        """Return the figures by their names."""
        return self.metrics.to_json() | {
            "mean_score_over_base_rate_ci": _listed(self.mean_score_over_base_rate_ci),
            "detection_delay": None
            if self.delay is None
            else {"median_s": self.delay.median_s, "detected_share": self.delay.detected_share},
            "ap_by_seed": _listed(self.ap_by_seed),
            "choice_ap": self.choice_ap,
            "fit_s": self.fit_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """entries: by scorer. paired: AP of the first minus AP of the second of each pair; empty without a test fraud.

    picked: the scorer that validation picks, None where it cannot. ablation: what order and time are worth to each
    scorer, where that was asked for. limits: what these data cannot say, in words.
    """

    entries: Mapping[str, Entry]
    paired: Mapping[tuple[str, str], Difference]
    picked: str | None
    n_seeds: int
    ablation: Mapping[str, Worth] | None
    limits: tuple[str, ...]

    def to_json(self) -> Json:
        """Return the document of `fraud compare --json`."""
        document: Json = {
            "models": {name: entry.to_json() for name, entry in self.entries.items()},
            "paired": {
                f"{a}|{b}": {"ap_diff": one.diff, "ci": list(one.ci), "by_seed": list(one.by_fit)}
                for (a, b), one in self.paired.items()
            },
            "picked": self.picked,
            "seeds": self.n_seeds,
            "limits": list(self.limits),
        }
        if self.ablation is not None:
            document["ablation"] = {name: worth.to_json() for name, worth in self.ablation.items()}
        return document

    def words(self) -> tuple[str, ...]:
        """Return the verdict as sentences: the pick, each pair, what order and time are worth, what cannot be said."""
        told = [] if self.picked is None else [f"validation picks {self.picked} (AP on the first half of its users)"]
        told += [pair_words(a, b, one) for (a, b), one in self.paired.items()]
        for name, worth in (self.ablation or {}).items():
            told += worth.words(name)
        return (*told, *self.limits)


def compare(
    log: Log, config: Config, *, models: Sequence[str] = DEFAULT_MODELS, seeds: int = 1, ablate: bool = False
) -> Comparison:
    """Return how the named scorers do on a log, side by side; ablate also retrains them without order, without times.

    For notebooks: all in this process, one after another; `fraud compare` does the same in parallel, with bundles,
    pictures and resume. Raises ConfigError and DataError.
    """
    lineup = lineup_of(models, config, seeds=seeds)
    with TemporaryDirectory(prefix="fraud-prepared-") as work:
        prepared = prepare(log, config, Path(work) / "set", progress=_ignore)
        check_periods(prepared)
        check_halves(prepared, lineup)
        by_seed = [fits_of(prepared, lineup, config, seed) for seed in range(seeds)]
        judged = {name: [judge(fits[name], prepared, config) for fits in by_seed] for name in lineup.names}
        comparison = compare_judged(judged, prepared, config, fit_s={})
        if not ablate:
            return comparison
        chosen = histories(log, config, DEFAULT_SAMPLE)
        fits: dict[str, dict[str, list[FittedModel]]] = {}
        for variant in variants_of(chosen):
            prepare_variant(chosen, variant, config, Path(work) / variant, progress=_ignore)
            opened = open_histories(Path(work) / variant)
            by_seed = [fits_of(opened.prepared, lineup, config, seed) for seed in range(seeds)]
            fits[variant] = {name: [one[name] for one in by_seed] for name in lineup.names}
        intact = open_histories(Path(work) / VARIANTS[0])
        worth = {name: worth_of({v: fits[v][name] for v in fits}, intact, config) for name in lineup.names}
        return replace(comparison, ablation=worth, limits=(*comparison.limits, *chosen.limits))


def check_halves(prepared: Prepared, lineup: Lineup) -> None:
    """Raise DataError where a half of the validation users cannot do what it is for, before anything is trained."""
    if lineup.members and len(np.unique(_choosing_labels(prepared))) < 2:
        raise DataError(
            "the first half of the validation users holds one class only, so fused cannot weigh its members; leave "
            "fused out, or choose a longer validation period in [split]"
        )
    label_V = prepared.label_N[prepared.validates_N]
    second_V = prepared.half_U[prepared.user_N[prepared.validates_N]] >= 0.5
    if (label_V[second_V] if (label_V[second_V] == 1).any() else label_V).all():
        raise DataError(
            "each validation example that would calibrate the scores is fraud; expected others too: choose a longer "
            "validation period in [split]"
        )


def compare_judged(
    judged: Mapping[str, Sequence[Judged]], prepared: Prepared, config: Config, *, fit_s: Mapping[str, float]
) -> Comparison:
    """Return the comparison of judged scorers, one Judged for each seed; the same seeds of each, on the same set.

    fit_s: seconds of one fit, by scorer, where measured.
    """
    seed, budget = config.training.seed, config.policy.alert_budget
    tables = {
        name: ranked([one.test_examples for one in fits], budget=budget, seed=seed) for name, fits in judged.items()
    }
    entries = {
        name: _entry(fits, tables[name], prepared, config, fit_s=fit_s.get(name)) for name, fits in judged.items()
    }
    return Comparison(
        entries=entries,
        paired=differences(tables),
        picked=_picked(entries, prepared),
        n_seeds=len(next(iter(judged.values()))),
        ablation=None,
        limits=limits_of(prepared, config),
    )


def limits_of(prepared: Prepared, config: Config) -> tuple[str, ...]:
    """Return what these data cannot say, one sentence each; known before anything is trained."""
    n_test = int(prepared.tests_N.sum())
    n_fraud = int((prepared.label_N[prepared.tests_N] == 1).sum())
    limits: list[str] = []
    if n_fraud == 0:
        limits.append("the test period holds no known fraud: there is no figure of how good a scorer is")
    elif n_fraud == n_test:
        limits.append(f"each of the {n_test:,} test examples is fraud: there is no AUC, and any order has an AP of 1")
    budget = config.policy.alert_budget
    if n_within_budget(budget, n_test) == 0:
        limits.append(
            f"policy.alert_budget = {budget:g} of {n_test:,} test examples is under one alert: nothing is caught "
            "within it, and it has no precision"
        )
    if len(np.unique(_choosing_labels(prepared))) < 2:
        limits.append(
            "the first half of the validation users holds one class only: validation cannot choose between scorers"
        )
    n_choosing = int((_choosing_labels(prepared) == 1).sum())
    if 0 < n_choosing < _FEW_FRAUDS:
        limits.append(
            f"{n_choosing} known frauds of the first half of the validation users choose between the scorers and weigh "
            f"a fused one: with fewer than {_FEW_FRAUDS} that is mostly chance"
        )
    second_V = prepared.half_U[prepared.user_N[prepared.validates_N]] >= 0.5
    if not (prepared.label_N[prepared.validates_N][second_V] == 1).any():
        limits.append("the second half of the validation users holds no fraud: all of them calibrate the scores")
    if not config.log.has_clock:
        limits.append("the log has no clock: there is no detection delay")
    elif config.labels is not None and config.labels.level != "event":
        limits.append(f"one label a {config.labels.level} is judged at its last decision: there is no detection delay")
    return tuple(limits)


def _entry(fits: Sequence[Judged], table: Ranked, prepared: Prepared, config: Config, *, fit_s: float | None) -> Entry:
    first = fits[0].test
    means = {name: _mean([getattr(one.test, name) for one in fits]) for name in _MEANS}
    if len(fits) > 1:
        means |= {
            "ap_ci": percentile_interval(table.resampled.ap_R),
            "auc_ci": percentile_interval(table.resampled.auc_R),
            "recall_at_budget_ci": percentile_interval(table.resampled.recall_R),
        }
    return Entry(
        metrics=replace(first, **means),
        mean_score_over_base_rate_ci=mean_score_over_base_rate_ci(
            [one.test_examples for one in fits], seed=config.training.seed
        ),
        delay=_delay(fits, prepared, config),
        ap_by_seed=table.ap_by_fit,
        choice_ap=_mean([one.choice_ap for one in fits]),
        fit_s=fit_s,
    )


def _delay(fits: Sequence[Judged], prepared: Prepared, config: Config) -> DetectionDelay | None:
    """Return the mean over fits; None without a clock, and for labels that are judged once, at an end."""
    if not config.log.has_clock or (config.labels is not None and config.labels.level != "event"):
        return None
    tests_N = np.asarray(prepared.tests_N)
    found = [
        detection_delay(
            prepared.session_N[tests_N].astype(np.int64),
            prepared.time_us_N[tests_N],
            one.test_examples.label_N,
            alerts(
                one.test_examples.score_N,
                one.test_examples.amount_N,
                threshold=one.policy.review_at,
                costs=one.policy.costs,
            ),
        )
        for one in fits
    ]
    return DetectionDelay(
        median_s=_mean([one.median_s for one in found]),
        detected_share=_mean([one.detected_share for one in found]),
        n_sessions=found[0].n_sessions,
    )


def _picked(entries: Mapping[str, Entry], prepared: Prepared) -> str | None:
    if len(entries) == 1:
        return next(iter(entries))
    if len(np.unique(_choosing_labels(prepared))) < 2:
        return None
    return max(entries, key=lambda name: entries[name].choice_ap or 0.0)


def _choosing_labels(prepared: Prepared) -> LabelArray:
    """Return the labels of the first half of the validation users."""
    is_first_V = prepared.half_U[prepared.user_N[prepared.validates_N]] < 0.5
    return prepared.label_N[prepared.validates_N][is_first_V]


def pair_words(a: str, b: str, one: Difference) -> str:
    interval = f"[{one.ci[0]:.3f}, {one.ci[1]:.3f}]"
    spread = "" if len(one.by_fit) < 2 else f"; by seed {min(one.by_fit):+.3f} to {max(one.by_fit):+.3f}"
    if not one.is_clear:
        return f"{a} and {b} do not differ clearly: {one.diff:+.3f} AP {interval}{spread}"
    if one.diff > 0:
        return f"{a} is better than {b} by {one.diff:.3f} AP {interval}{spread}"
    spread = "" if not spread else f"; by seed {-max(one.by_fit):+.3f} to {-min(one.by_fit):+.3f}"
    return f"{b} is better than {a} by {-one.diff:.3f} AP [{-one.ci[1]:.3f}, {-one.ci[0]:.3f}]{spread}"


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where one of them does not exist."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _listed(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _ignore(_stage: str, _done: int, _all: int) -> None:
    return None
