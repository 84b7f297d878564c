"""What pretraining gives with few labels: `python benchmarks/pretraining.py [CONFIG] [--users 8000] [--seeds 0,1,2]`.

A bank is simulated (seed 0), or the log of CONFIG read. For each seed and kind (none, next, masked) a network is
pretrained on every event of the training period, then fitted with the labels of all users, and with those of 10 % and
of 1 % of them, three times each with other users; the events of the others stay. Validation and test keep their labels.
Fields made of labels (the frauds known of an entity) read as none throughout: they would tell what is hidden.

With few labels the same passes would be too few steps: a tenth and a hundredth take smaller batches and more epochs,
and as there are too few frauds to hold out, they train on all labelled users to the last epoch. Eight minutes of CPU a
seed. Printed: AP, the mean over seeds and draws; the paired difference to "none", its 95 % interval from resampling
users (of that mean), and each single difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.config import Config, load_config
from fraud.entities import RISK_NAMES
from fraud.learning import fit_model
from fraud.logs import read_log
from fraud.preparation import Prepared, prepare
from fraud.ranking import percentile_interval, ranking_figures, resampled_ranking_figures
from fraud.tokens import NONE_ID
from fraud.training import EpochReport, TrainingState
from pipelines.simulate import simulate

# Fields of the risk of an entity; its volume counts events, whatever became of them.
MADE_OF_LABELS = tuple(name for name in RISK_NAMES if not name.startswith("volume"))
FloatArray = npt.NDArray[np.float64]


class Budget(NamedTuple):
    """How a share of the labels is trained on. epochs and batch_events None: as the configuration says."""

    share: float
    epochs: int | None
    batch_events: int | None


# The first pretrains, the others take that up.
BUDGETS = (Budget(1.0, None, None), Budget(0.1, 24, 512), Budget(0.01, 30, 256))


class Run(NamedTuple):
    """The logits of one fit on the validation and the test examples, and how many frauds it learnt from."""

    validation_V: FloatArray
    test_T: FloatArray
    n_frauds: int


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG")
    parser.add_argument("--users", type=int, default=8000, help="of the simulated bank")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--draws", type=int, default=3, help="of the users who keep their labels, for each seed")
    parser.add_argument("--kinds", default="none,next,masked")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--part", choices=("validation", "both"), default="both", help="validation: while choosing")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.config
        if path is None:
            simulate(Path(folder) / "log", users=arguments.users, seed=0)
            path = Path(folder) / "log" / "config.toml"
        config = load_config(path, arguments.set)
        prepared = without_labels_in_fields(
            prepare(read_log(config), config, Path(folder) / "set", progress=lambda *_: None)
        )
        runs: dict[tuple[str, float], list[Run]] = {(kind, b.share): [] for kind in kinds for b in BUDGETS}
        for seed in (int(text) for text in arguments.seeds.split(",")):
            for kind in kinds:
                for share, found in runs_of(prepared, config, kind, seed, arguments.draws).items():
                    runs[kind, share] += found
        parts = {"validation": prepared.validates_N} | ({"test": prepared.tests_N} if arguments.part == "both" else {})
        figures = {part: figures_of(runs, prepared, rows_N, part) for part, rows_N in parts.items()}
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        for part, lines in figures.items():
            for line in lines:
                sys.stdout.write(f"{part}  {_text(line)}\n")


def runs_of(prepared: Prepared, config: Config, kind: str, seed: int, draws: int) -> Mapping[float, list[Run]]:
    """Return the runs at each share of the labels; the pretraining, which reads none, is done once."""
    pretraining: list[TrainingState] = []

    def report(epoch: EpochReport) -> None:
        if epoch.stage == "pretrain":
            pretraining[:] = [epoch.state]
            sys.stderr.write(f"seed {seed} {kind} epoch {epoch.epoch}: {epoch.held_out_loss:.4f}\n")

    runs: dict[float, list[Run]] = {}
    for budget in BUDGETS:
        runs[budget.share] = []
        for draw in range(draws if budget.share < 1 else 1):
            resume = pretraining[0] if pretraining else None
            run = run_of(prepared, config, kind, (seed, draw), budget, resume=resume, report=report)
            runs[budget.share].append(run)
            ap = _ap(run.validation_V, prepared, prepared.validates_N)
            sys.stderr.write(f"seed {seed} {kind} {budget.share:.0%}: {run.n_frauds} frauds, validation AP {ap:.3f}\n")
    return runs


def run_of(
    prepared: Prepared,
    config: Config,
    kind: str,
    seed_and_draw: tuple[int, int],
    budget: Budget,
    *,
    resume: TrainingState | None,
    report: Callable[[EpochReport], None],
) -> Run:
    """Return one fit; resume is the end of a pretraining, or None."""
    seed, draw = seed_and_draw
    share_U = np.random.default_rng([seed, 1 + draw]).random(len(prepared.held_out_U))
    shown = replace(prepared, trains_N=prepared.trains_N & (share_U < budget.share)[prepared.user_N])
    training = replace(config.training, pretrain=kind, seed=seed)
    if budget.epochs is not None and budget.batch_events is not None:
        training = replace(training, epochs=budget.epochs, patience=budget.epochs, batch_events=budget.batch_events)
        shown = replace(shown, held_out_U=np.ones_like(prepared.held_out_U))
    fitted = fit_model(shown, replace(config, training=training), resume=resume, report=report)
    return Run(fitted.validation_logit_V, fitted.test_logit_T, int(prepared.label_N[shown.trains_N].sum()))


def without_labels_in_fields(prepared: Prepared) -> Prepared:
    tokens_NF = np.array(prepared.tokens_NF)
    for f, field in enumerate(prepared.vocabulary.fields):
        if field.name.partition(":")[0] in MADE_OF_LABELS:
            tokens_NF[:, f] = NONE_ID
    return replace(prepared, tokens_NF=tokens_NF)


def _ap(logit_R: FloatArray, prepared: Prepared, rows_N: npt.NDArray[np.bool_]) -> float:
    return float(ranking_figures(logit_R, prepared.label_N[rows_N], budget=0.0).ap_R[0])


def figures_of(
    runs: Mapping[tuple[str, float], list[Run]], prepared: Prepared, rows_N: npt.NDArray[np.bool_], part: str
) -> list[dict[str, object]]:
    """Return a line for each kind and share: means over the fits, and over the fits in each resample of users."""
    label_R, user_R = prepared.label_N[rows_N], prepared.user_N[rows_N].astype(np.int64)
    point: dict[tuple[str, float], FloatArray] = {}
    resampled: dict[tuple[str, float], FloatArray] = {}
    for key, fits in runs.items():
        logits = [run.validation_V if part == "validation" else run.test_T for run in fits]
        point[key] = np.array([_ap(logit_R, prepared, rows_N) for logit_R in logits])
        resampled[key] = np.mean(
            [resampled_ranking_figures(x, label_R, user_R, budget=0.0, seed=0, n_resamples=1000).ap_R for x in logits],
            axis=0,
        )
    lines: list[dict[str, object]] = []
    for (kind, share), aps in point.items():
        line: dict[str, object] = {"share": share, "kind": kind, "frauds": [run.n_frauds for run in runs[kind, share]]}
        line |= {"ap": float(aps.mean()), "ap_ci": percentile_interval(resampled[kind, share]), "aps": aps.tolist()}
        if kind != "none" and ("none", share) in point:
            diff_R = aps - point["none", share]
            line["diff"] = float(diff_R.mean())
            line["diff_ci"] = percentile_interval(resampled[kind, share] - resampled["none", share])
            line["diffs"] = diff_R.tolist()
        lines.append(line)
    return sorted(lines, key=lambda line: -float(str(line["share"])))


def _text(line: Mapping[str, object]) -> str:
    text = f"{line['share']:>5.0%} {line['kind']:<7} AP {line['ap']:.3f} {_interval(line['ap_ci'])}"
    if "diff" in line:
        text += f"  diff {line['diff']:+.3f} {_interval(line['diff_ci'])}"
        text += f"  each {' '.join(f'{x:+.3f}' for x in line['diffs'])}"
    return f"{text}  frauds {line['frauds']}"


def _interval(bounds: object) -> str:
    return "" if bounds is None else "[{:.3f}, {:.3f}]".format(*bounds)


if __name__ == "__main__":
    main()
