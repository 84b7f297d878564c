"""`fraud train`: one scorer from a log to a bundle, tracked; a killed run goes on with --resume.

Beside the bundle to be stands a working folder: the prepared set, and after every epoch of a network a checkpoint. Each
is written whole, so --resume goes on from the last whole one and ends with the same bytes as a run nobody killed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fraud.bundle import Bundle, load_bundle, write_bundle
from fraud.config import Config, config_to_toml
from fraud.errors import ConfigError, DataError, FraudError
from fraud.judging import Judged, bundle_parts, judge
from fraud.learning import FittedModel, check_members, fit_fused, fit_model, member_config
from fraud.logs import check_usable, read_log
from fraud.manifest import MANIFEST
from fraud.models import MODELS, FusedModel
from fraud.preparation import Prepared, open_prepared, prepare
from pipelines.console import Advance, Screen, interval
from pipelines.files import check_output, directory_written_whole, replace_directory, written_whole
from pipelines.prepare import counts, show_counts, write_quarantine
from pipelines.records import RunRecord
from pipelines.tracking import track

if TYPE_CHECKING:
    from fraud.training import EpochReport, TrainingState

Json = dict[str, Any]  # Any: JSON
_IDENTITY = "log.json"
_PACKAGES = ("fraud", "numpy", "pyarrow", "torch", "scikit-learn", "onnxruntime", "safetensors")


def train_bundle(config: Config, out: Path, *, overwrite: bool, resume: bool, screen: Screen) -> Json:
    """Return the test figures of a scorer trained under the configuration, its bundle written to `out`.

    Raises ConfigError, DataError; a run that was killed leaves its working folder, which --resume takes up.
    """
    work = out.with_name(f".{out.name}.work")
    check_output(out, work, overwrite=overwrite, resume=resume, mark=MANIFEST)
    if not resume:
        discard(work)
    try:
        prepared = prepared_for(config, work, screen)
        judged, record = train_prepared(prepared, config, work, screen)
    except FraudError:
        # Nothing to take up: what was asked for cannot be done. What an earlier run left stays, for a mended call.
        if not resume:
            discard(work)
        raise
    bundle = publish(judged, prepared, config, out)
    document = judged.test.to_json() | {
        "model": config.model.name,
        "bundle": str(out),
        "version": bundle.version,
        "fit_s": record.fit_s,
        "choice_ap": judged.choice_ap,
        "report": prepared.report,
    }
    if not judged.test.n_positive:
        screen.warn("the test period holds no known fraud: there is no figure of how good the scorer is")
    document["tracked"] = track(record, bundle.path, config, screen)
    show_figures({config.model.name: document}, screen)
    discard(work)
    return document


def prepared_for(config: Config, work: Path, screen: Screen) -> Prepared:
    """Return the prepared set in the working folder, made now unless a whole one of this log and config is there."""
    if config.labels is None:
        raise ConfigError("[labels] is missing: training needs to know what is fraud")
    directory = work / "prepared"
    wanted = _log_identity(config)
    identity = work / _IDENTITY
    if identity.exists() and json.loads(identity.read_text(encoding="utf-8")) == wanted:
        screen.say(f"taking up the prepared set in {directory}")
        return open_prepared(directory)
    discard(work)
    work.mkdir(parents=True)
    with closing(read_log(config, work=work)) as log:
        write_quarantine(log.quarantine, work.with_name(f"{work.name[1:-5]}.quarantine.parquet"), log.files)
        check_usable(log)
        if log.n_events == 0:
            raise DataError("the log holds no row; there is nothing to train on")
        with screen.progress() as advance, directory_written_whole(directory) as aside:
            report = prepare(log, config, aside, progress=advance).report
        show_counts(counts(log) | report, screen)
    with written_whole(identity) as aside:
        aside.write_text(json.dumps(wanted), encoding="utf-8")
    return open_prepared(directory)


def discard(work: Path) -> None:
    """Remove a working folder; what says that its set is whole goes first, in case the removal is killed half-way."""
    (work / _IDENTITY).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def train_prepared(prepared: Prepared, config: Config, work: Path, screen: Screen) -> tuple[Judged, RunRecord]:
    """Return the judged scorer and what the tracker is told of it."""
    with screen.progress() as advance:
        if isinstance(MODELS.get(config.model.name), FusedModel):
            check_members(config.model.members)
            members = {
                name: fit_resumed(prepared, member_config(config, name), work, advance) for name in config.model.members
            }
            fitted = fit_fused({name: member.model for name, member in members.items()}, prepared, config)
            fit = Fit(fitted, (), sum(member.fit_s for member in members.values()))
        else:
            fit = fit_resumed(prepared, config, work, advance)
    judged = judge(fit.model, prepared, config)
    return judged, record_of(judged, fit, prepared, config)


class Fit(NamedTuple):
    """A fitted model, the figures of each of its epochs and the seconds it took, those before a kill included."""

    model: FittedModel
    history: tuple[dict[str, float], ...]
    fit_s: float


def fit_resumed(prepared: Prepared, config: Config, work: Path, advance: Advance) -> Fit:
    """Return the model of the configuration, fitted from the last whole checkpoint in the working folder."""
    checkpoint = work / f"{config.model.name}.checkpoint"
    state, history, spent_s = _read_checkpoint(checkpoint, config)
    started = time.monotonic()

    def report(epoch: EpochReport) -> None:
        is_pretraining = epoch.stage == "pretrain"
        held_out_loss = "pretrain_held_out_loss" if is_pretraining else "held_out_loss"
        figures = {f"{epoch.stage}_loss": epoch.train_loss, held_out_loss: epoch.held_out_loss}
        figures |= {"held_out_ap": epoch.held_out_ap, "learning_rate": epoch.learning_rate}
        history.append({name: value for name, value in figures.items() if value is not None})
        planned = config.training.pretrain_epochs if is_pretraining else config.training.epochs
        advance(f"{epoch.stage} {config.model.name}", epoch.epoch, planned)
        _write_checkpoint(checkpoint, epoch.state, config, history, spent_s + time.monotonic() - started)

    model = fit_model(prepared, config, resume=state, report=report)
    return Fit(model, tuple(history), round(spent_s + time.monotonic() - started, 3))


def record_of(judged: Judged, fit: Fit, prepared: Prepared, config: Config) -> RunRecord:
    """Return what the tracker is told of a judged scorer."""
    return RunRecord(
        name=config.model.name,
        parameters=parameters_of(config),
        history=fit.history,
        metrics=_numbers(judged.test.to_json(), "test") | _numbers(judged.validation.to_json(), "validation"),
        tags={"fingerprint": prepared.fingerprint, "model": config.model.name},
        fit_s=fit.fit_s,
    )


def publish(judged: Judged, prepared: Prepared, config: Config, out: Path) -> Bundle:
    """Return the bundle of a judged scorer, standing whole at `out`."""
    parts = bundle_parts(judged, prepared, config, packages=_packages())
    aside = out.with_name(f".{out.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    write_bundle(aside, parts)
    replace_directory(aside, out)
    return load_bundle(out)


def show_figures(figures: Mapping[str, Mapping[str, Any]], screen: Screen) -> None:
    """Print the test figures of scorers side by side."""
    rows = [
        [
            name,
            interval(one["ap"], one["ap_ci"]),
            interval(one["auc"], one["auc_ci"]),
            interval(one["recall_at_budget"], one.get("recall_at_budget_ci")),
            interval(one["precision_at_budget"], None),
            interval(one["ece"], None),
            interval(one["mean_score_over_base_rate"], None),
            "-" if one.get("fit_s") is None else f"{one['fit_s']:.0f} s",
        ]
        for name, one in figures.items()
    ]
    header = ["scorer", "AP", "AUC", "recall at budget", "precision", "ECE", "score/base", "fit"]
    first = next(iter(figures.values()))
    title = f"Test period: {first['n_positive']:,} frauds among {first['n_test']:,} examples (95 % intervals by user)"
    screen.table(title, header, rows)


def _log_identity(config: Config) -> Json:
    """Return what a prepared set depends on: the settings but for how a model is fitted, and the files as they are."""
    from fraud.readers import log_files

    paths = log_files(config.log.events, config.root)
    if config.labels is not None and config.labels.path is not None:
        paths = [*paths, *log_files(config.labels.path, config.root)]
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    text = config_to_toml(config)
    kept = [
        block
        for block in text.split("\n\n")
        if not block.startswith(("[training]", "[policy]", "[retrain]", "[tracking]"))
    ]
    kept = [block for block in kept if not block.startswith("[model]")]
    settings = {"order_features": config.model.order_features, "padded": config.training.padded}
    return {"config": kept, "settings": settings, "files": files}


def _read_checkpoint(path: Path, config: Config) -> tuple[TrainingState | None, list[dict[str, float]], float]:
    """Return the state, the history and the seconds spent of a checkpoint made under the same settings, or nothing."""
    if not path.exists():
        return None, [], 0.0
    from safetensors import safe_open

    from fraud.training import state_from_arrays

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        if metadata["config"] != _config_digest(config):
            return None, [], 0.0
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    state = state_from_arrays(arrays, json.loads(metadata["numbers"]))
    return state, json.loads(metadata["history"]), float(metadata["spent_s"])


def _write_checkpoint(
    path: Path, state: TrainingState, config: Config, history: list[dict[str, float]], spent_s: float
) -> None:
    from safetensors.numpy import save

    from fraud.training import state_to_arrays

    arrays, numbers = state_to_arrays(state)
    metadata = {
        "config": _config_digest(config),
        "numbers": json.dumps(numbers),
        "history": json.dumps(history),
        "spent_s": str(spent_s),
    }
    with written_whole(path) as aside:
        aside.write_bytes(save(arrays, metadata=metadata))


def _config_digest(config: Config) -> str:
    return hashlib.sha256(config_to_toml(config).encode()).hexdigest()


def parameters_of(config: Config) -> dict[str, str]:
    """Return every setting by "section.name", as TOML text."""
    lines = [line for line in config_to_toml(config).splitlines() if line]
    section, parameters = "", {}
    for line in lines:
        if line.startswith("["):
            section = line.strip("[]")
        else:
            name, _, value = line.partition(" = ")
            parameters[f"{section}.{name}"] = value
    return parameters


def _numbers(figures: Json, prefix: str) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, list):
            numbers |= {f"{prefix}_{name}_low": value[0], f"{prefix}_{name}_high": value[1]}
        elif value is not None:
            numbers[f"{prefix}_{name}"] = float(value)
    return numbers


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
