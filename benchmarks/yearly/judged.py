"""What the year's models were worth, against the truth: the recall of each week, and every promotion on fresh users."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from yearly.bank import Year
from yearly.lived import LivedWeek, bundle_of
from yearly.truth import World

from fraud.metrics import paired_ap_difference

FRESH_WEEKS = 4  # a promotion is judged on so many weeks of fresh users from its own on


class Found(NamedTuple):
    """The shares of a week's frauds, and of its later story's (None: it has none), found within the budget, by way."""

    recall: dict[str, float]
    later_recall: dict[str, float | None]


class Worth(NamedTuple):
    """The AP of a challenger minus its champion's on fresh users, against the truth, with its 95 % interval."""

    week: int
    verdict: str
    difference: float
    low: float
    high: float


def found_by_week(world: World, lived: Sequence[LivedWeek], work: Path, year: Year) -> list[Found]:
    """Return what was found in each lived week: by the oracle, the gated champion, the newest challenger, the first."""
    never_D = world.scores(bundle_of(work, lived[0].champion), lived[0].week, year.weeks)
    newest = lived[0].champion
    found: list[Found] = []
    for one in lived:
        newest = newest if one.challenger is None else one.challenger
        asked = {week: world.scores(bundle_of(work, week), one.week, one.week + 1) for week in {one.champion, newest}}
        scores = {
            "oracle": world.p_fraud_D,
            "gated": asked[one.champion],
            "ungated": asked[newest],
            "never": never_D,
        }
        recalls = {name: world.recalls(score_D, one.week) for name, score_D in scores.items()}
        found.append(
            Found({name: both[0] for name, both in recalls.items()}, {name: both[1] for name, both in recalls.items()})
        )
    return found


def worth_on_fresh_users(world: World, lived: Sequence[LivedWeek], work: Path) -> list[Worth]:
    """Return what each challenger was worth beside the champion that it was judged against, promoted or not."""
    worths: list[Worth] = []
    for before, one in pairwise(lived):
        if one.challenger is None:
            continue
        until = one.week + FRESH_WEEKS
        chosen_D = (world.week_D >= one.week) & (world.week_D < until)
        new, old = (
            world.examples(world.scores(bundle_of(work, week), one.week, until), chosen_D)
            for week in (one.challenger, before.champion)
        )
        difference = paired_ap_difference(new, old, seed=0)
        assert difference is not None  # every week has fraud
        worths.append(Worth(one.week, one.verdict, difference.diff, difference.lo, difference.hi))
    return worths


def caught_in(found: Sequence[Found], lived: Sequence[LivedWeek], way: str) -> int | None:
    """Return the first week from which on a way finds at least half of what the oracle finds of the later story."""
    told = [(one.week, f.later_recall[way], f.later_recall["oracle"]) for one, f in zip(lived, found, strict=True)]
    finds = [(week, share >= 0.5 * best) for week, share, best in told if share is not None and best is not None]
    missed = [week for week, is_found in finds if not is_found]
    after = [week for week, _ in finds if not missed or week > missed[-1]]
    return after[0] if after else None


def mean_recall(found: Sequence[Found], lived: Sequence[LivedWeek], way: str, from_week: int) -> float:
    """Return the mean over the weeks from one on of the share of fraud found."""
    return float(np.mean([f.recall[way] for one, f in zip(lived, found, strict=True) if one.week >= from_week]))
