"""A simulated year in the life of a model: `python benchmarks/year.py [--work DIR] [--picture year.png]`.

A bank of 5,000 customers, its frauds reported days to weeks late (nothing counts before 14 days). From week 14 on, each
Monday a challenger is trained on what is known by then and put before the gate. Three things happen:

    week 20   a new story of fraud: a pattern that was harmless until then, so that no old model can see it
    week 30   a new version of the app, which adds events of a type that nobody has seen
    week 40   for two weeks all amounts come in cents

Printed, and drawn, for each week: the share of all fraud, and of the new story, that is among the alerts within the
budget: with the champion behind the gate, with each week's newest model, with the first model for ever, and with the
best possible score. Every challenger is judged afterwards beside its champion on the users of another bank, against the
truth; truly worse is an AP lower by more than twice the gate's margin. Goals: the new story is found within the delay
plus four weeks; the monitor names the new events and the cents, in the right words and their week; no truly worse model
is promoted. The gate and the monitor know what a bank would; the truth is asked only here.

--work keeps the logs and the bundles; a run that was killed goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from yearly.bank import NEW_TYPE, Year, simulate_year, week_name
from yearly.judged import Worth, caught_in, found_by_week, mean_recall, worth_on_fresh_users
from yearly.lived import as_of_week, lived_weeks
from yearly.picture import year_picture
from yearly.truth import read_world
from yearly.watched import WatchedWeek, watched_weeks

from fraud.gate import parse_gate
from pipelines.console import Screen

Json = dict[str, Any]  # Any: JSON
WAYS = ("oracle", "gated", "ungated", "never")


def main() -> None:
    """Print a table, or JSON; write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--fresh", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="of the configuration, as of `fraud retrain`")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--picture", type=Path, help="a PNG; beside it goes an SVG")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() if arguments.work is None else nullcontext(arguments.work) as folder:
        document = a_year(
            Path(folder),
            users=arguments.users,
            fresh=arguments.fresh,
            seed=arguments.seed,
            overrides=arguments.set,
            screen=Screen(as_json=arguments.json),
        )
    if arguments.picture is not None:
        drawn = year_picture(document, Year())
        arguments.picture.write_bytes(drawn.png)
        arguments.picture.with_suffix(".svg").write_text(drawn.svg, encoding="utf-8")
    sys.stdout.write((json.dumps(document, indent=1) if arguments.json else table(document)) + "\n")


def a_year(work: Path, *, users: int, fresh: int, seed: int, overrides: list[str], screen: Screen) -> Json:
    """Return what a year came to: its weeks, its challengers on fresh users, and the goals."""
    year = Year()
    configs = {
        name: work / name / "config.toml"
        if (work / name / "config.toml").exists()
        else simulate_year(work / name, year, users=n_users, seed=of_seed)
        for name, n_users, of_seed in (("lived", users, seed), ("fresh", fresh, seed + 1000))
    }
    lived = lived_weeks(configs["lived"], work, year, overrides, screen)
    watched = watched_weeks(configs["lived"], work, lived, overrides, screen)
    found = found_by_week(read_world(configs["lived"]), lived, work, year)
    worths = worth_on_fresh_users(read_world(configs["fresh"]), lived, work)
    config = as_of_week(configs["lived"], year.first_week, overrides)
    return {
        "gate": config.retrain.promote_if,
        "weeks": [
            one._asdict() | two._asdict() | {"alarms": list(three.alarms)}
            for one, two, three in zip(lived, found, watched, strict=True)
        ],
        "fresh": [worth._asdict() for worth in worths],
        "mean_recall": {way: mean_recall(found, lived, way, year.first_week) for way in WAYS},
        "mean_recall_once_due": {way: mean_recall(found, lived, way, year.caught_by_week) for way in WAYS},
        "caught_in_week": {way: caught_in(found, lived, way) for way in WAYS},
        "goals": [
            _is_caught(caught_in(found, lived, "gated"), year),
            _is_named("the new events are named in their week", watched, year.new_app_week, (NEW_TYPE,)),
            _is_named("the cents are named in their week", watched, year.cents_week, ("amount", "100")),
            _is_safe(worths, 2.0 * ap_margin(config.retrain.promote_if)),
        ],
    }


def ap_margin(gate: str) -> float:
    """Return how much lower than the champion's the gate lets a challenger's AP be."""
    return next(-clause.bound for clause in parse_gate(gate).clauses if clause.figure == "ap" and clause.is_paired)


def _is_caught(week: int | None, year: Year) -> Json:
    text = "never" if week is None else f"week {week}"
    name = f"the new story is found by week {year.caught_by_week} (half of what the best possible finds, and for good)"
    return {"name": name, "is_met": week is not None and week <= year.caught_by_week, "text": text}


def _is_named(name: str, watched: Sequence[WatchedWeek], week: int, words: tuple[str, ...]) -> Json:
    alarms = next(one.alarms for one in watched if one.week == week)
    named = [alarm for alarm in alarms if all(word in alarm for word in words)]
    return {"name": name, "is_met": bool(named), "text": (named or alarms or ("silence",))[0]}


def _is_safe(worths: Sequence[Worth], worse_by: float) -> Json:
    promoted = [worth for worth in worths if worth.verdict == "promoted"]
    worse = [worth for worth in promoted if worth.difference < -worse_by]
    lowest = min((worth.difference for worth in promoted), default=0.0)
    text = f"{len(worse)} of {len(promoted)} promotions, the lowest {lowest:+.3f} AP on fresh users"
    return {"name": f"no model is promoted that is worse by over {worse_by:g} AP", "is_met": not worse, "text": text}


def table(document: Json) -> str:
    """Return the year as text."""
    worth = {one["week"]: f"{one['difference']:+.3f}" for one in document["fresh"]}
    lines = [
        f"Found within the budget: all fraud (and of the new story). The gate: {document['gate']}",
        f"{'week':13} {'oracle':>12} {'gated':>12} {'no gate':>12} {'never':>12}   verdict   AP on fresh users, alarms",
    ]
    for one in document["weeks"]:
        shares = [(one["recall"][way], one["later_recall"][way]) for way in WAYS]
        cells = [f"{share:.0%}" + ("" if later is None else f" ({later:.0%})") for share, later in shares]
        name = f"{one['week']} ({week_name(one['week'])})"
        columns = " ".join(f"{cell:>12}" for cell in cells)
        lines.append(f"{name:13} {columns}   {one['verdict']:9} {worth.get(one['week'], ''):7}")
        lines += [f"{'':13} {alarm}" for alarm in one["alarms"]]
    for title, key in (("mean", "mean_recall"), ("mean once due", "mean_recall_once_due")):
        lines.append(f"{title:13} " + " ".join(f"{document[key][way]:>12.1%}" for way in WAYS))
    lines += [
        f"{'MET   ' if goal['is_met'] else 'MISSED'} {goal['name']}: {goal['text']}" for goal in document["goals"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
