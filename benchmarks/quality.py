"""Every scorer on the public logs, beside the published figures: `python -m benchmarks.quality --work DIR`.

    python -m benchmarks.quality --work DIR [--only fdh,declined,accepted,wikipedia] [--models boosting,lstm,fused]

fdh: the card payments of the Fraud Detection Handbook, the mean over its four folds (the book's protocol, with card
precision@100). declined, accepted: the loans of BPI 2012. wikipedia: edits that end in a ban. Each log is adapted by
benchmarks/datasets and scored as its own configuration says; fused stacks the other models that are asked for.
Intervals: 95 %, 1,000 resamples of users. A fold takes half a minute to prepare and a minute or two a network on one
core, half an hour in all. What is finished stays in DIR (per configuration), so a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import bpi12_loan, fdh_cards, fdh_judge, wikipedia_bans
from fraud.config import Config, config_to_toml, load_config
from fraud.learning import FittedModel, fit_fused, fit_model
from fraud.logs import read_log
from fraud.metrics import Examples, evaluate
from fraud.preparation import Prepared, open_prepared, prepare, prepared_config, remove_prepared

MODELS = ("boosting", "lstm", "gru", "transformer", "fused")
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_DAY_US = 86_400 * 10**6

Json = dict[str, Any]  # Any: JSON
Fits = Mapping[str, FittedModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One log with one label. folds: its configurations by name, with settings. references: what others reached."""

    folder: str
    write: Callable[[Path, Path], object]
    folds: Mapping[str, tuple[str, ...]]
    judge: Callable[[Mapping[str, Prepared], Mapping[str, FittedModel]], Json]
    references: tuple[str, ...]


def main() -> None:
    """Print a table as it grows, or JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the folder with the public logs")
    parser.add_argument("--only", default=",".join(TASKS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names, models = arguments.only.split(","), arguments.models.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(TASKS)}")
    figures: dict[str, Json] = {}
    for name in names:
        say = _no_line if arguments.json else _line
        task = TASKS[name]
        say(f"{name}\n  " + "\n  ".join(task.references))
        figures[name] = measure(task, arguments.work / name, arguments.data, models, tuple(arguments.set), say)
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")


def measure(
    task: Task, work: Path, data: Path, models: Sequence[str], settings: tuple[str, ...], say: Callable[[str], None]
) -> Json:
    """Return {model: figures}; what was fitted before is read from `work`."""
    task.write(data / task.folder, work / "log")  # seconds, and the configuration is the one of today
    configs = {fold: load_config(work / "log" / f"{fold}.toml", [*own, *settings]) for fold, own in task.folds.items()}
    folds = _prepared_folds(configs, work)
    fits: dict[str, dict[str, FittedModel]] = {fold: {} for fold in folds}
    figures: Json = {}
    for model in (*(name for name in models if name != "fused"), *(name for name in models if name == "fused")):
        started = time.process_time()
        for fold, prepared in folds.items():
            config = replace(configs[fold], model=replace(configs[fold].model, name=model))
            fits[fold][model] = _fit(prepared, config, work / fold, fits[fold])
        figures[model] = task.judge(folds, {fold: fits[fold][model] for fold in folds})
        figures[model]["cpu_s"] = round(time.process_time() - started, 1)
        say(_figures_line(model, figures[model]))
    return figures


def _prepared_folds(configs: Mapping[str, Config], work: Path) -> dict[str, Prepared]:
    """Return the prepared set of each configuration; training settings do not shape it, so they may differ."""
    prepared: dict[str, Prepared] = {}
    for fold, config in configs.items():
        folder = work / fold / "set"
        plain = replace(config, model=type(config.model)(), training=type(config.training)())
        if prepared_config(folder) != config_to_toml(plain):
            remove_prepared(folder)
            # Read anew for each fold: of the columns that say the parts a log holds its configuration's alone.
            prepare(read_log(config), plain, folder, progress=lambda *_: None)
        prepared[fold] = open_prepared(folder)
    return prepared


def _fit(prepared: Prepared, config: Config, folder: Path, members: Fits) -> FittedModel:
    """Return the model fitted, or its logits as an earlier run left them."""
    if config.model.name == "fused":
        return fit_fused(members, prepared, config)
    key = hashlib.sha256(f"{config_to_toml(config)}{prepared.fingerprint}".encode()).hexdigest()[:12]
    kept = folder / f"{config.model.name}-{key}.npz"
    if kept.exists():
        logits = np.load(kept)
        return FittedModel(
            name=config.model.name,
            model_files={},
            validation_logit_V=logits["validation"],
            test_logit_T=logits["test"],
        )
    fitted = fit_model(prepared, config, resume=None, report=lambda _: None)
    aside = kept.with_suffix(".part.npz")
    np.savez(aside, validation=fitted.validation_logit_V, test=fitted.test_logit_T)
    aside.rename(kept)
    return fitted


def _by_user(folds: Mapping[str, Prepared], fits: Fits) -> Json:
    """Return the figures of the one fold there is."""
    ((fold, prepared),) = folds.items()
    tests = np.flatnonzero(prepared.tests_N)
    examples = Examples(
        score_N=fits[fold].test_logit_T,
        label_N=np.asarray(prepared.label_N[tests]),
        user_N=np.asarray(prepared.user_N[tests]).astype(np.int64),
        amount_N=None,
    )
    found = evaluate(examples, alert_budget=0.01, threshold=0.0, costs=None)
    return {
        "auc": found.auc,
        "auc_ci": found.auc_ci,
        "ap": found.ap,
        "ap_ci": found.ap_ci,
        "n_test": found.n_test,
        "n_positive": found.n_positive,
    }


def _by_book(folds: Mapping[str, Prepared], fits: Fits) -> Json:
    """Return the mean of the folds under the book's protocol."""
    judged: dict[str, fdh_judge.Judged] = {}
    for fold, prepared in folds.items():
        day_N = np.asarray(prepared.time_us_N) // _DAY_US
        customer_N = np.asarray(prepared.user_N).astype(np.int64)
        label_N = np.asarray(prepared.label_N)
        day_N -= day_N[np.asarray(prepared.trains_N)].min()
        score_N = np.full(len(day_N), np.nan)
        score_N[np.asarray(prepared.tests_N)] = fits[fold].test_logit_T
        test_day_N, rows = fdh_judge.test_days(day_N, customer_N, label_N)
        judged[fold] = fdh_judge.Judged(test_day_N[rows], customer_N[rows], label_N[rows], score_N[rows])
    found = fdh_judge.summary(judged)
    return {
        **found["mean"],
        "auc_ci": found["ci"]["auc"],
        "ap_ci": found["ci"]["ap"],
        "folds": {fold: found[fold] for fold in folds},
    }


def _figures_line(model: str, figures: Json) -> str:
    def with_interval(name: str) -> str:
        low, high = figures[f"{name}_ci"]
        return f"{name.upper()} {figures[name]:.3f} [{low:.3f}, {high:.3f}]"

    card = f"  card precision@100 {figures['cp100']:.3f}" if "cp100" in figures else ""
    return f"  {model:12} {with_interval('auc')}  {with_interval('ap')}{card}  {figures['cpu_s']:.0f} s of CPU"


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _no_line(_: str) -> None:
    return None


def _loans(outcome: str, *references: str) -> Task:
    return Task(
        folder="bpi12_loan",
        write=bpi12_loan.write_dataset,
        folds={"config": (f"labels.column={outcome}",)},
        judge=_by_user,
        references=references,
    )


TASKS: Mapping[str, Task] = {
    "fdh": Task(
        folder="fdh_cards",
        write=fdh_cards.write_dataset,
        folds=dict.fromkeys(fdh_cards.FOLDS, ()),
        judge=_by_book,
        references=(
            "published: XGB AUC .869, AP .687, card precision@100 .303; LSTM .876, .665, .297",
            "more of user and terminal, other code: boosting .880, .715; forest .881, .729; their average .882, .732",
        ),
    ),
    "declined": _loans("declined", "aggregates + HistGradientBoosting AUC .700, AP .514; a plain LSTM .686, .506"),
    "accepted": _loans("accepted", "aggregates + HistGradientBoosting AUC .759, AP .699; a plain LSTM .762, .699"),
    "wikipedia": Task(
        folder="wikipedia_bans",
        write=wikipedia_bans.write_dataset,
        folds={"config": ()},
        judge=_by_user,
        references=("aggregates + HistGradientBoosting AUC .888 [.82, .94], AP .027; a plain LSTM .855, .019",),
    ),
}


if __name__ == "__main__":
    main()
