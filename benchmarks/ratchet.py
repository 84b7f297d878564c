"""How far a gate lets quality slip: `python benchmarks/ratchet.py [--chains 2] [--json]`.

A gate forgives a challenger that is a little worse. When every challenger is a little worse than the champion it meets
(drift that nobody sees, labels that rot), what is forgiven adds up: the ratchet, known from trials of medicines as
biocreep (D'Agostino, Massaro & Sullivan 2003, Statistics in Medicine 22:169). Here a year of 52 weekly challengers is
played with known truth (`gating.truth`), each truly worse than the champion of its week by a fixed share of the margin,
errors correlated by .75, each week a fresh judged period.

Printed for each share: promotions and average precision lost in the year, beside the loss on paper (52 x what is lost
by a promotion x the chance of one); then the same with an anchor: the challenger must also pass against the champion
of the year's start. Five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gating.truth import BUDGET, Bank, simulated
from scipy.stats import norm

from fraud.config import RetrainConfig
from fraud.gate import Gate, parse_gate, rule_on

WEEKS = 52
IN_MARGINS = (0.25, 0.5)  # on paper the worst lies between
POSITIVES = (300, 1000)
_CORRELATION = 0.75
_N_RESAMPLES = 300
Json = dict[str, Any]  # Any: JSON


class Year(NamedTuple):
    """How many challengers were promoted, average precision lost by the end, the mean standard error of a week."""

    promoted: int
    lost: float
    standard_error: float


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--users", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gate", default=RetrainConfig().promote_if)
    parser.add_argument("--margin", type=float, default=0.02)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    gate = parse_gate(arguments.gate)
    bank = simulated(arguments.users, arguments.seed)
    rows: list[Json] = []
    for positives in POSITIVES:
        for share in IN_MARGINS:
            for is_anchored in (False, True):
                years = [
                    lived(bank, gate, positives, worse_by=share * arguments.margin, is_anchored=is_anchored, seed=seed)
                    for seed in range(arguments.seed, arguments.seed + arguments.chains)
                ]
                rows.append(_row(years, positives, share, arguments.margin, is_anchored=is_anchored))
                sys.stderr.write(_line(rows[-1]) + "\n")
    document = {"gate": gate.text, "margin": arguments.margin, "weeks": WEEKS, "chains": arguments.chains, "rows": rows}
    sys.stdout.write((json.dumps(document, indent=1) if arguments.json else "\n".join(map(_line, rows))) + "\n")


def lived(bank: Bank, gate: Gate, positives: int, *, worse_by: float, is_anchored: bool, seed: int) -> Year:
    """Return a year in which each week's challenger is truly worse than the champion by so much average precision.

    The errors of a scorer are drawn anew each week, as its decisions are; those of any two are correlated.
    """
    start_size = bank.champion_size
    champion_size, promoted, errors = start_size, 0, list[float]()
    shared, own = math.sqrt(_CORRELATION), math.sqrt(1 - _CORRELATION)
    for week in range(WEEKS):
        rng = np.random.default_rng([seed, 3, positives, week])
        sample = bank.sample(positives, rng)
        shared_N = sample.errors(rng)
        own_errors = [sample.errors(rng) for _ in range(3)]
        challenger_size = bank.size_of(bank.figure("ap", champion_size) - worse_by)
        challenger, champion, anchor = (
            sample.contender(size * (shared * shared_N + own * own_N))
            for size, own_N in zip((challenger_size, champion_size, start_size), own_errors, strict=True)
        )
        met = [champion, anchor] if is_anchored and promoted else [champion]
        rulings = [
            rule_on(gate, challenger, one, alert_budget=BUDGET, seed=week, n_resamples=_N_RESAMPLES) for one in met
        ]
        errors += [(one.ci[1] - one.ci[0]) / 3.92 for one in rulings[0][:1] if one.ci]
        if all(one.passed for against in rulings for one in against):
            champion_size, promoted = challenger_size, promoted + 1
    lost = bank.figure("ap", start_size) - bank.figure("ap", champion_size)
    return Year(promoted, lost, float(np.mean(errors)))


def _row(years: Sequence[Year], positives: int, share: float, margin: float, *, is_anchored: bool) -> Json:
    standard_error = float(np.mean([year.standard_error for year in years]))
    chance = float(norm.cdf((margin - share * margin) / standard_error - norm.ppf(0.975)))
    return {
        "positives": positives,
        "worse_by_margins": share,
        "is_anchored": is_anchored,
        "promoted": [year.promoted for year in years],
        "lost_ap": [year.lost for year in years],
        "lost_margins_mean": float(np.mean([year.lost for year in years])) / margin,
        # Of the first clause alone; the anchor is not worked out on paper.
        "lost_margins_on_paper": None if is_anchored else WEEKS * share * chance,
        "standard_error": standard_error,
    }


def _line(row: Json) -> str:
    paper = "" if row["lost_margins_on_paper"] is None else f", on paper {row['lost_margins_on_paper']:.1f}"
    return (
        f"{row['positives']:5,} frauds, each worse by {row['worse_by_margins']:.2f} margins"
        f"{', anchored' if row['is_anchored'] else '':10}: promoted {np.mean(row['promoted']):4.1f} of {WEEKS}, "
        f"lost {row['lost_margins_mean']:.1f} margins (most {max(row['lost_ap']):.3f} AP){paper}"
    )


if __name__ == "__main__":
    main()
