"""`fraud compare`: scorers side by side from one prepared set, in parallel; a killed run goes on with --resume.

Beside the folder to be stands a working folder: the prepared set, and a folder for each fit. What is there whole is
never done again, so a run that goes on ends with the same comparison as one that nobody killed (but for fit_s).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fraud.ablation import VARIANTS, Worth, open_histories, prepare_variant, variants_of, worth_of
from fraud.comparison import Comparison, check_halves, compare_judged, limits_of
from fraud.config import Config
from fraud.errors import FraudError
from fraud.histories import DEFAULT_SAMPLE, histories
from fraud.judging import Judged, judge
from fraud.learning import check_periods, fit_fused
from fraud.lineup import Lineup, lineup_of, scorer_config
from fraud.logs import read_log
from fraud.preparation import Prepared
from pipelines.comparison_page import comparison_page
from pipelines.console import Screen, interval, spoken_s
from pipelines.files import check_output, directory_written_whole, written_whole
from pipelines.jobs import Job, read_fit, run_jobs
from pipelines.pictures import pictures
from pipelines.records import RunRecord
from pipelines.tracking import track, track_parent
from pipelines.train import Fit, discard, prepared_for, publish, record_of

Json = dict[str, Any]  # Any: JSON
REPORT, PAGE, PICTURES, BUNDLES = "comparison.json", "comparison.html", "pictures", "bundles"


class Contest(NamedTuple):
    """What a comparison left: by scorer the fits and the judged fits, one for each seed, and the verdict."""

    lineup: Lineup
    judged: Mapping[str, Sequence[Judged]]
    fits: Mapping[str, Sequence[Fit]]
    comparison: Comparison


def compare_log(
    config: Config,
    out: Path,
    names: Sequence[str],
    *,
    seeds: int,
    ablate: bool,
    overwrite: bool,
    resume: bool,
    n_processes: int,
    screen: Screen,
) -> Json:
    """Return the comparison of the named scorers on the log, with its bundles, page and pictures written to `out`.

    Raises ConfigError, DataError; a run that was killed leaves its working folder, which --resume takes up.
    """
    started = time.monotonic()
    work = out.with_name(f".{out.name}.work")
    check_output(out, work, overwrite=overwrite, resume=resume, mark=REPORT)
    lineup = lineup_of(names, config, seeds=seeds)
    if not resume:
        discard(work)
    try:
        prepared = prepared_for(config, work, screen)
        contest = compare_prepared(
            prepared, config, lineup, seeds=seeds, work=work, n_processes=n_processes, screen=screen
        )
        if ablate:
            contest = ablated(contest, config, work=work, n_processes=n_processes, screen=screen)
    except FraudError:
        # Nothing to take up: what was asked for cannot be done. What an earlier run left stays, for a mended call.
        if not resume:
            discard(work)
        raise
    document = write_contest(contest, prepared, config, out)
    tracked = track_contest(contest, prepared, config, out, screen)
    show_contest(contest.comparison, screen)
    if contest.comparison.picked is not None:
        screen.say(f"the bundle that validation picks: {out / document['bundles'][contest.comparison.picked]}")
    screen.say(f"pictures and tables: {out / PAGE}")
    discard(work)
    return document | {"out": str(out), "tracked": tracked, "seconds": round(time.monotonic() - started, 1)}


def compare_prepared(
    prepared: Prepared,
    config: Config,
    lineup: Lineup,
    *,
    seeds: int,
    work: Path,
    n_processes: int,
    screen: Screen,
) -> Contest:
    """Return the scorers of a line-up fitted on a prepared set, with each seed, judged and compared.

    Fits that stand whole in the working folder are taken up. Raises DataError where nothing can be learned or judged.
    """
    check_periods(prepared)
    check_halves(prepared, lineup)
    for limit in limits_of(prepared, config):
        screen.warn(limit)
    jobs = _jobs(lineup, config, prepared.directory, work / "fits", seeds=seeds, prefix="")
    run_jobs(list(jobs.values()), n_processes=n_processes, screen=screen)
    fits = _with_fused(jobs, lineup, prepared, config, seeds=seeds)
    judged = {
        name: [
            judge(fit.model, prepared, scorer_config(config, name, lineup.members, nth))
            for nth, fit in enumerate(fits[name])
        ]
        for name in lineup.names
    }
    fit_s = {name: round(sum(fit.fit_s for fit in fits[name]) / seeds, 3) for name in lineup.names}
    return Contest(lineup, judged, fits, compare_judged(judged, prepared, config, fit_s=fit_s))


def ablated(contest: Contest, config: Config, *, work: Path, n_processes: int, screen: Screen) -> Contest:
    """Return the contest with what order and time are worth to each scorer: fitted again without the one, the other."""
    lineup, seeds = contest.lineup, contest.comparison.n_seeds
    folder = work / "ablation"
    limits = _prepare_variants(config, folder, screen)
    variants = [variant for variant in VARIANTS if (folder / variant).is_dir()]
    jobs = {
        variant: _jobs(
            lineup, config, folder / variant, work / "fits" / variant, seeds=seeds, prefix=f"{variant}: ", of=True
        )
        for variant in variants
    }
    run_jobs([job for one in jobs.values() for job in one.values()], n_processes=n_processes, screen=screen)
    models = {
        variant: _with_fused(jobs[variant], lineup, open_histories(folder / variant).prepared, config, seeds=seeds)
        for variant in variants
    }
    intact = open_histories(folder / VARIANTS[0])
    worth: dict[str, Worth] = {
        name: worth_of({v: [fit.model for fit in models[v][name]] for v in variants}, intact, config)
        for name in lineup.names
    }
    comparison = replace(contest.comparison, ablation=worth, limits=(*contest.comparison.limits, *limits))
    return contest._replace(comparison=comparison)


def write_contest(contest: Contest, prepared: Prepared, config: Config, out: Path) -> Json:
    """Return the document of a contest; `out` then holds it, its page and pictures, and the first seed's bundles."""
    comparison = contest.comparison
    document = comparison.to_json() | {"bundles": {name: f"{BUNDLES}/{name}" for name in contest.lineup.names}}
    examples = {name: [one.test_examples for one in judged] for name, judged in contest.judged.items()}
    with directory_written_whole(out) as aside:
        (aside / BUNDLES).mkdir()
        for name in contest.lineup.names:
            chosen = scorer_config(config, name, contest.lineup.members, 0)
            publish(contest.judged[name][0], prepared, chosen, aside / BUNDLES / name)
        drawn = pictures(comparison, examples)
        (aside / PICTURES).mkdir()
        for picture in drawn:
            (aside / PICTURES / f"{picture.name}.png").write_bytes(picture.png)
        (aside / PAGE).write_text(comparison_page(comparison, drawn, prepared.report), encoding="utf-8")
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        (aside / REPORT).write_text(text, encoding="utf-8")
    return document


def track_contest(
    contest: Contest, prepared: Prepared, config: Config, out: Path, screen: Screen
) -> dict[str, str | None]:
    """Return the ids of the runs that the tracker took: the comparison, and below it each scorer."""
    comparison = contest.comparison
    parent = RunRecord(
        name="compare " + ", ".join(contest.lineup.names),
        parameters={"models": ",".join(contest.lineup.names), "seeds": str(comparison.n_seeds)},
        history=(),
        metrics={
            f"{name}_test_ap": entry.metrics.ap
            for name, entry in comparison.entries.items()
            if entry.metrics.ap is not None
        },
        tags={"fingerprint": prepared.fingerprint, "picked": comparison.picked or ""},
        fit_s=sum(fit.fit_s for fits in contest.fits.values() for fit in fits),
    )
    files = [out / REPORT, out / PAGE, *sorted((out / PICTURES).iterdir())]
    runs = {"comparison": track_parent(parent, files, config, screen, keep_as=out / "comparison")}
    for name in contest.lineup.names:
        chosen = scorer_config(config, name, contest.lineup.members, 0)
        record = record_of(contest.judged[name][0], contest.fits[name][0], prepared, chosen)
        runs[name] = track(replace(record, parent=parent.id), out / BUNDLES / name, chosen, screen)
    return runs


def show_contest(comparison: Comparison, screen: Screen) -> None:
    """Print the leaderboard and the verdict in words."""
    first = next(iter(comparison.entries.values())).metrics
    seeds = "" if comparison.n_seeds == 1 else f", means over {comparison.n_seeds} seeds (their spread after ±)"
    screen.table(
        f"Test period: {first.n_positive:,} frauds among {first.n_test:,} examples (95 % intervals by user{seeds})",
        ["scorer", "AP", "AUC", "recall at budget", "precision", "saved", "delay", "ECE", "score/base", "fit"],
        leaderboard_rows(comparison),
    )
    for line in comparison.words():
        screen.results.print(line, markup=False, soft_wrap=True)


def leaderboard_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the leaderboard; a figure that does not exist is a dash."""
    rows: list[list[str]] = []
    for name, entry in comparison.entries.items():
        one = entry.metrics
        spread = "" if entry.ap_by_seed is None or len(entry.ap_by_seed) < 2 else f" ± {_spread(entry.ap_by_seed):.3f}"
        delay = None if entry.delay is None else entry.delay.median_s
        rows.append(
            [
                f"{name} *" if name == comparison.picked else name,
                interval(one.ap, one.ap_ci) + spread,
                interval(one.auc, None),
                interval(one.recall_at_budget, one.recall_at_budget_ci),
                interval(one.precision_at_budget, None),
                "-" if one.money_saved is None else f"{one.money_saved:,.0f}",
                "-" if delay is None else spoken_s(delay),
                interval(one.ece, None),
                interval(one.mean_score_over_base_rate, None),
                "-" if entry.fit_s is None else spoken_s(entry.fit_s),
            ]
        )
    return rows


def _spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation."""
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def _jobs(
    lineup: Lineup, config: Config, prepared: Path, folder: Path, *, seeds: int, prefix: str, of: bool = False
) -> dict[tuple[str, int], Job]:
    """Return a job for each scorer that is trained and each seed; the slow networks first."""
    jobs: dict[tuple[str, int], Job] = {}
    for nth in range(seeds):
        for name in sorted(lineup.fitted, key=lambda one: one in ("boosting", "average")):
            title = f"{prefix}{name}" if seeds == 1 else f"{prefix}{name} (seed {config.training.seed + nth})"
            chosen = scorer_config(config, name, lineup.members, nth)
            jobs[name, nth] = Job(title, chosen, prepared, folder / f"{name}-{nth}", of)
    return jobs


def _with_fused(
    jobs: Mapping[tuple[str, int], Job], lineup: Lineup, prepared: Prepared, config: Config, *, seeds: int
) -> dict[str, list[Fit]]:
    """Return the fits of every scorer, one for each seed: those of the jobs, and fused stacked from its members'."""
    fits = {name: [read_fit(jobs[name, nth]) for nth in range(seeds)] for name in lineup.fitted}
    for name in lineup.names:
        if name not in fits:
            fits[name] = [
                _stacked({member: fits[member][nth] for member in lineup.members}, name, lineup, prepared, config, nth)
                for nth in range(seeds)
            ]
    return fits


def _stacked(
    members: Mapping[str, Fit], name: str, lineup: Lineup, prepared: Prepared, config: Config, nth: int
) -> Fit:
    started = time.monotonic()
    models = {member: fit.model for member, fit in members.items()}
    model = fit_fused(models, prepared, scorer_config(config, name, lineup.members, nth))
    fit_s = sum(fit.fit_s for fit in members.values()) + time.monotonic() - started
    return Fit(model, (), round(fit_s, 3))


def _prepare_variants(config: Config, folder: Path, screen: Screen) -> tuple[str, ...]:
    """Return the limits of the histories, whose sets then stand in the folder; what is there whole is taken up."""
    told = folder / "limits.json"
    if told.exists():
        screen.say(f"taking up the histories in {folder}")
        return tuple(json.loads(told.read_text(encoding="utf-8")))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with closing(read_log(config, work=folder)) as log, screen.progress() as advance:
        chosen = histories(log, config, DEFAULT_SAMPLE)
        for variant in variants_of(chosen):

            def of_variant(stage: str, done: int, whole: int, variant: str = variant) -> None:
                advance(f"{variant}: {stage}", done, whole)

            with directory_written_whole(folder / variant) as aside:
                prepare_variant(chosen, variant, config, aside, progress=of_variant)
    with written_whole(told) as aside:
        aside.write_text(json.dumps(chosen.limits), encoding="utf-8")
    return chosen.limits
