"""What the gate lets through, with known truth: `python benchmarks/gate.py [--pairs 50] [--picture gate.png]`.

The champion is the truth of a simulated bank with errors (`gating.truth`), so many that its average precision is what a
trained lstm reaches; the challenger's errors are larger or smaller, so that it is truly worse, equal or better by so
many margins. The errors of the two go together as those of trained models did (8,000 users, test period, against the
truth): .75 for the same kind of model fitted on a fortnight's newer data (lstm .70, boosting .76), .4 for another kind
(lstm and boosting). The paired standard errors at 300 frauds that this gives, .017 and .025, are those of the trained
pairs (.016 and .020; .023 and .029). A pair is judged as `fraud retrain` judges: users' fortnights are drawn until they
hold so many frauds, and the challenger is promoted if every clause of the gate passes.

Printed beside the count: the power worked out on paper, normal theory with the standard errors that the intervals
imply. A gate's clauses must be FIGURE >= champion - MARGIN, of figures of ranking. Twelve minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gating.picture import Curve, draw
from gating.truth import BUDGET, FIGURES, Bank, simulated
from scipy.stats import binomtest, multivariate_normal, norm

from fraud.config import RetrainConfig
from fraud.events import FloatArray
from fraud.gate import Gate, Ruling, parse_gate, rule_on
from fraud.metrics import N_RESAMPLES

CORRELATIONS = {"the same kind, newer data": 0.75, "another kind of model": 0.4}
IN_MARGINS = (-2.0, -1.0, 0.0, 2.0)
Json = dict[str, Any]  # Any: JSON


class Cell(NamedTuple):
    """Pairs of one kind: rulings [pair][clause], and the true difference of each clause's figure."""

    kind: str
    positives: int
    in_margins: float
    true_C: FloatArray
    rulings: Sequence[tuple[Ruling, ...]]

    @property
    def passed_PC(self) -> np.ndarray:
        """Return bool [pairs, clauses]."""
        return np.array([[one.passed for one in pair] for pair in self.rulings])

    @property
    def differences_PC(self) -> FloatArray:
        """Return the differences that were measured, float64 [pairs, clauses]."""
        return np.array([[one.difference for one in pair] for pair in self.rulings])

    @property
    def errors_C(self) -> FloatArray:
        """Return the standard error of each clause's difference: its 95 % interval by 3.92, the mean over pairs."""
        return np.mean([[(one.ci[1] - one.ci[0]) / 3.92 for one in pair if one.ci] for pair in self.rulings], axis=0)


def main() -> None:
    """Print a table, or JSON; draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--positives", default="300,1000")
    parser.add_argument("--kinds", default=",".join(CORRELATIONS))
    parser.add_argument("--users", type=int, default=24_000)
    parser.add_argument("--resamples", type=int, default=N_RESAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gate", default=RetrainConfig().promote_if)
    parser.add_argument("--margin", type=float, default=0.02, help="of average precision, that the pairs differ by")
    parser.add_argument("--picture", type=Path, help="a PNG to write")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    gate = parse_gate(arguments.gate)
    for clause in gate.clauses:
        if not (clause.is_paired and clause.is_at_least and clause.figure in FIGURES):
            parser.error(f"{clause.text}: expected FIGURE >= champion - MARGIN, of {', '.join(FIGURES)}")
    bank = simulated(arguments.users, arguments.seed)
    options = {"n_pairs": arguments.pairs, "seed": arguments.seed, "n_resamples": arguments.resamples}
    cells: list[Cell] = []
    counts = [int(count) for count in arguments.positives.split(",")]
    for kind, positives in product(arguments.kinds.split(","), counts):
        cells += judged(bank, gate, kind, positives, margin=arguments.margin, **options)
        sys.stderr.write(table(documented(gate, arguments.margin, cells[-len(IN_MARGINS) :])) + "\n")
    document = documented(gate, arguments.margin, cells)
    if arguments.picture:
        draw(document, curves_of(gate, document), arguments.picture)
    sys.stdout.write((json.dumps(document, indent=1) if arguments.json else table(document)) + "\n")


def judged(
    bank: Bank,
    gate: Gate,
    kind: str,
    positives: int,
    *,
    margin: float,
    n_pairs: int,
    seed: int,
    n_resamples: int,
) -> list[Cell]:
    """Return one cell for each true difference; the samples and the draws of the errors are the same in all."""
    champion_ap = bank.figure("ap", bank.champion_size)
    sizes = [bank.size_of(champion_ap + by * margin) for by in IN_MARGINS]
    shared, own = math.sqrt(CORRELATIONS[kind]), math.sqrt(1 - CORRELATIONS[kind])
    rulings: list[list[tuple[Ruling, ...]]] = [[] for _ in sizes]
    for pair in range(n_pairs):
        rng = np.random.default_rng([seed, 2, positives, pair])
        sample = bank.sample(positives, rng)
        shared_N, challengers_N, champions_N = (sample.errors(rng) for _ in range(3))
        champion = sample.contender(bank.champion_size * (shared * shared_N + own * champions_N))
        for of_cell, size in zip(rulings, sizes, strict=True):
            challenger = sample.contender(size * (shared * shared_N + own * challengers_N))
            of_cell.append(rule_on(gate, challenger, champion, alert_budget=BUDGET, seed=seed, n_resamples=n_resamples))
    return [
        Cell(kind=kind, positives=positives, in_margins=by, true_C=_true_differences(bank, gate, size), rulings=of_cell)
        for by, size, of_cell in zip(IN_MARGINS, sizes, rulings, strict=True)
    ]


def _true_differences(bank: Bank, gate: Gate, size: float) -> FloatArray:
    figures = [clause.figure for clause in gate.clauses]
    return np.array([bank.figure(name, size) - bank.figure(name, bank.champion_size) for name in figures])


def power(gate: Gate, true_C: FloatArray, errors_C: FloatArray, correlation_CC: FloatArray) -> float:
    """Return the chance that every clause passes: differences normal about the truth, the interval 1.96 errors wide."""
    bound_C = np.array([clause.bound for clause in gate.clauses])
    room_C = (true_C - bound_C) / errors_C - norm.ppf(0.975)
    # scipy has no types: its checker reads int off the default of cov.
    return float(multivariate_normal.cdf(room_C, cov=correlation_CC))  # pyright: ignore[reportArgumentType]


def correlation(cells: Sequence[Cell]) -> FloatArray:
    """Return how the clauses' differences go together over the pairs of the cells, each about its own mean."""
    centred = np.concatenate([cell.differences_PC - cell.differences_PC.mean(axis=0) for cell in cells])
    return np.atleast_2d(np.corrcoef(centred.T))


def documented(gate: Gate, margin: float, cells: Sequence[Cell]) -> Json:
    """Return what was promoted, cell by cell, with the power on paper, and whether the goals are met."""
    rows: list[Json] = []
    for cell in cells:
        alike = [one for one in cells if (one.kind, one.positives) == (cell.kind, cell.positives)]
        together = correlation(alike)
        promoted = int(cell.passed_PC.all(axis=1).sum())
        interval = binomtest(promoted, len(cell.rulings)).proportion_ci()
        rows.append(
            {
                "kind": cell.kind,
                "positives": cell.positives,
                "in_margins": cell.in_margins,
                "true_difference": _by_clause(gate, cell.true_C),
                "standard_error": _by_clause(gate, cell.errors_C),
                "spread_of_differences": _by_clause(gate, cell.differences_PC.std(axis=0, ddof=1)),
                "pairs": len(cell.rulings),
                "promoted": promoted,
                "promoted_ci": [interval.low, interval.high],
                "passed": _by_clause(gate, cell.passed_PC.sum(axis=0)),
                "correlation": together.tolist(),
                "power": power(gate, cell.true_C, cell.errors_C, together),
            }
        )
    return {"gate": gate.text, "margin": margin, "cells": rows}


def curves_of(gate: Gate, document: Json) -> list[Curve]:
    """Return the power on paper between the cells of a kind and number of frauds, read between their figures."""
    curves: list[Curve] = []
    for kind, positives in dict.fromkeys((one["kind"], one["positives"]) for one in document["cells"]):
        alike = [one for one in document["cells"] if (one["kind"], one["positives"]) == (kind, positives)]
        place_P = np.linspace(IN_MARGINS[0], IN_MARGINS[-1], 81)
        true_PC, errors_PC = (
            np.stack([np.interp(place_P, IN_MARGINS, column) for column in zip(*rows, strict=True)], axis=1)
            for rows in ([list(one[name].values()) for one in alike] for name in ("true_difference", "standard_error"))
        )
        together = np.array(alike[0]["correlation"])
        powers = [power(gate, true_C, errors_C, together) for true_C, errors_C in zip(true_PC, errors_PC, strict=True)]
        curves.append(Curve(kind, positives, [place * document["margin"] for place in place_P], powers))
    return curves


def _by_clause(gate: Gate, value_C: np.ndarray) -> dict[str, float]:
    return {clause.figure: float(value) for clause, value in zip(gate.clauses, value_C, strict=True)}


def table(document: Mapping[str, Any]) -> str:
    """Return the cells as text."""
    lines = [f"gate: {document['gate']}"]
    for one in document["cells"]:
        figures = "  ".join(
            f"{name} {one['true_difference'][name]:+.3f} (error {one['standard_error'][name]:.4f}), "
            f"passed {one['passed'][name]:.0f}"
            for name in one["true_difference"]
        )
        low, high = one["promoted_ci"]
        lines.append(
            f"{one['kind']:25} {one['positives']:5,} frauds  {one['in_margins']:+.0f} margins: promoted "
            f"{one['promoted']:2} of {one['pairs']} ({low:.0%} .. {high:.0%}), on paper {one['power']:6.1%};  {figures}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
