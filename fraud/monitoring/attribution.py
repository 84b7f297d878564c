"""What a change is, in words: which events, how much more often than before, and where most of it sits.

What is still so comes before what is over; else in the order in which a person would look for the cause: something
never seen before, something missing, another unit; then what customers do; then what follows in scores and alerts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from fraud.events import FloatArray, IntArray
from fraud.monitoring.alarms import Change, Run
from fraud.monitoring.weekly import WEEK_US, Weekly

_UNITS = (10.0, 60.0, 100.0, 1000.0)
_NEAR_A_UNIT = 0.15
_MOSTLY, _MORE_THAN_ITS_SHARE = 0.7, 0.2
_NAMED = 3  # cells named of one statistic
_CAUSES = ("unknown", "null", "amount", "value", "type", "bigram", "session_length", "gap", "hour", "bucket", "volume")
_EFFECTS = ("score", "alert", "fraud", "performance")
_A_LOT = 1.5


class Observed(NamedTuple):
    """The figures that a change is told from. novel: how often each value that no vocabulary holds stood in each week,
    by field and (week, value)."""

    reference: Weekly
    judged: Weekly
    novel: Mapping[str, Counter[tuple[int, str]]]


class Sentence(NamedTuple):
    """What is said of one statistic or one group of its cells, and the clearest run it tells of."""

    text: str
    run: Run


def sentences(change: Change, observed: Observed) -> tuple[Sentence, ...]:
    """Return what changed: what is still so before what is over, the likely cause of each first."""
    by_statistic: dict[tuple[bool, str], list[Run]] = {}
    for run in change.runs:
        by_statistic.setdefault((not run.is_standing, run.series.statistic), []).append(run)
    for is_over in (False, True):
        if (is_over, "amount") in by_statistic:
            by_statistic.pop((is_over, "bucket:amount"), None)  # the same told twice
        for mean in ("gap", "session_length", "score"):
            of_mean = [run for run in by_statistic.get((is_over, mean), []) if run.series.kind == "mean"]
            if of_mean:
                by_statistic[is_over, mean] = of_mean
    ranked = sorted(by_statistic.items(), key=lambda one: (one[0][0], _rank(one[0][1], one[1]), -_clarity(one[1])))
    # How far the first one reaches is in `spoken_time`.
    first, *others = (sentence for (_, name), runs in ranked for sentence in _told(name, runs, observed))
    return first, *(one._replace(text=one.text + _end(one, change, observed.judged.starts_us_W)) for one in others)


def spoken_time(change: Change, said: tuple[Sentence, ...], starts_us_W: IntArray) -> str:
    """Return "since 12 May 2025" of a change that stands, "over: from 12 May 2025 to 26 May 2025" of another."""
    since = _day(int(starts_us_W[change.onset]))
    if change.is_standing:
        return f"since {since}{_end(said[0], change, starts_us_W)}"
    return f"over: from {since} to {_day(int(starts_us_W[change.last]) + WEEK_US)}"


def headline(change: Change, said: tuple[Sentence, ...], starts_us_W: IntArray) -> str:
    """Return the first sentence with its time; and how much else changed."""
    more = len(said) - 1
    also = f" (and {more} more {'change' if more == 1 else 'changes'} at that time)" if more else ""
    return f"{spoken_time(change, said, starts_us_W)}, {said[0].text}{also}"


def _end(sentence: Sentence, change: Change, starts_us_W: IntArray) -> str:
    """Return how far a sentence of a change that stands reaches, where that is not the newest week."""
    run = sentence.run
    if not change.is_standing or run.last >= len(starts_us_W) - 1:
        return ""
    end = _day(int(starts_us_W[run.last]) + WEEK_US)
    return f" (up to {end}, the newest that is known)" if run.is_standing else f" (over since {end})"


def run_text(run: Run, observed: Observed) -> str:
    """Return what one cell does."""
    return _told(run.series.statistic, [run], observed)[0].text


def _rank(name: str, runs: list[Run]) -> int:
    """Return the place in the order of causes; a volume that is another altogether comes first."""
    plain = name.partition(":")[0]
    if plain == "volume":
        ratios = [run.series.observed_W[run.worst] / max(run.series.expected, 1.0) for run in runs]
        if any(ratio > _A_LOT or ratio < 1 / _A_LOT for ratio in ratios):
            return 0
    if plain in _EFFECTS:
        return len(_CAUSES) + _EFFECTS.index(plain)
    if plain in ("value", "type", "bigram"):
        return _CAUSES.index("value")
    return _CAUSES.index(plain) if plain in _CAUSES else len(_CAUSES)


def _clarity(runs: list[Run]) -> float:
    return max(abs(float(run.series.t_W[run.worst])) for run in runs)


def _told(name: str, runs: list[Run], observed: Observed) -> list[Sentence]:
    statistic, _, field = name.partition(":")
    if statistic == "amount":
        return _amounts(runs, observed)
    texts = [_cell_text(statistic, field, run, observed) for run in runs]
    more = f"; and {len(texts) - _NAMED} more of this kind" if len(texts) > _NAMED else ""
    return [Sentence("; ".join(texts[:_NAMED]) + more, runs[0])]


def _cell_text(statistic: str, field: str, run: Run, observed: Observed) -> str:
    series = run.series
    now, before = float(series.observed_W[run.worst]), series.expected
    cell = series.cell
    match statistic, series.kind:
        case "unknown", _:
            return _unknown(run, observed)
        case "null", _:
            of = f" of `{cell[-1]}`" if len(cell) == 2 else ""
            return f"`{cell[0]}`{of} is missing in {_percent(now)} of events, {_percent(before)} before"
        case "value", _:
            return f"`{field}` is `{cell[0]}` in {_percent(now)} of events, {_percent(before)} before"
        case "type", _:
            return f"`{cell[0]}` {_often(now, before)}{_mostly('type', run, observed)}"
        case "bigram", _:
            return _follows(cell[0], cell[1], now, before) + _mostly("bigram", run, observed)
        case "bucket", _:
            return f"`{field}` {cell[0]} {_often(now, before)}"
        case "gap", "mean":
            return f"pauses inside sessions are {_ratio(2.0 ** (now - before))} as long"
        case "gap", _:
            return f"a pause of {cell[0]} {_often(now, before)}"
        case "session_length", "mean":
            return f"sessions hold {_ratio(float(np.exp(now - before)))} as many events"
        case "session_length", _:
            return f"a session of {cell[0]} {_often(now, before)}"
        case "hour", _:
            return f"{cell[0]} holds {_percent(now)} of events, {_percent(before)} before"
        case "volume", _:
            return f"{now:,.0f} {cell[0]} in a week, {before:,.0f} before"
        case "score", "mean":
            direction = "higher" if now > before else "lower"
            return f"scores are {direction}: the odds of fraud are {_ratio(float(np.exp(now - before)))} what they were"
        case "score", _:
            return f"a score {cell[0]} {_often(now, before)}"
        case "alert", _:
            return f"{_percent(now)} of what is scored is alerted, {_percent(before)} before"
        case "fraud", _:
            return f"{_percent(now)} of what is settled is known as fraud, {_percent(before)} before"
        case "performance", _:
            return _performance(cell[0], now, before)
        case _:
            return f"{statistic} {' '.join(cell)}: {now:.4g}, {before:.4g} before"


def _performance(figure: str, now: float, before: float) -> str:
    if figure == "mean_score_over_base_rate":
        return (
            f"scores promise {_ratio(float(np.exp(now)))} the frauds that came, {_ratio(float(np.exp(before)))} before"
        )
    name = "average precision" if figure == "ap" else "recall at the budget"
    return f"{name} of four weeks is {now:.2f}, {before:.2f} when the bundle was trained"


def _unknown(run: Run, observed: Observed) -> str:
    series, week = run.series, run.worst
    field = series.cell[0]
    now, before = float(series.observed_W[week]), series.expected
    values = Counter({v: n for (w, v), n in observed.novel.get(field, Counter()).items() if w == week})
    n_unknown = sum(values.values())
    what = "of a type" if field == "type" else f"with a `{field}`"
    if n_unknown == 0 or now < before:
        return f"{_percent(now)} of events are {what} never seen in training, {_percent(before)} before"
    named = [value for value, n in values.most_common(_NAMED) if n >= 0.1 * n_unknown]
    if len(named) == 1:
        what = f"of type `{named[0]}`" if field == "type" else f"with `{field}` `{named[0]}`"
        return f"{_percent(now * values[named[0]] / n_unknown)} of events are {what}, never seen before"
    listed = ": " + ", ".join(f"`{value}`" for value in named) if named else f", {len(values):,} different ones"
    return f"{_percent(now)} of events are {what} never seen before{listed}"


def _amounts(runs: list[Run], observed: Observed) -> list[Sentence]:
    """Return a sentence for the types whose amounts changed by about the same factor, each factor its own."""
    groups: list[tuple[float, list[Run]]] = []
    for run in runs:
        factor = float(np.exp(run.series.observed_W[run.worst] - run.series.expected))
        for place, (of_group, members) in enumerate(groups):
            if abs(np.log(factor / of_group)) < _NEAR_A_UNIT * 2:
                groups[place] = (of_group, [*members, run])
                break
        else:
            groups.append((factor, [run]))
    said: list[Sentence] = []
    for factor, members in groups:
        named = ", ".join(f"`{run.series.cell[0]}`" for run in members[:_NAMED])
        others = len(members) - _NAMED
        named += f" and {others} other {'type' if others == 1 else 'types'}" if others > 0 else ""
        unit = _unit(factor)
        size = f"{_ratio(unit or factor)} as high" + (": another unit?" if unit else "")
        said.append(Sentence(f"amounts of {named} are {size}{_mostly_of_amount(members[0], observed)}", members[0]))
    return said


def _unit(factor: float) -> float | None:
    """Return the change of unit that a factor is about, if it is about one."""
    for unit in _UNITS:
        for exact in (unit, 1 / unit):
            if abs(np.log(factor / exact)) < _NEAR_A_UNIT:
                return exact
    return None


def _mostly(statistic: str, run: Run, observed: Observed) -> str:
    """Return ", mostly in channel web" where most of a change sits in one value of a categorical field."""
    for name, judged in observed.judged.segments.items():
        of, _, field = name.partition("|")
        if of != statistic:
            continue
        reference = observed.reference.segments[name]
        columns = [c for c, cell in enumerate(judged.cells) if cell[:-1] == run.series.cell]
        weeks = slice(run.found, run.last + 1)
        k_V = judged.k_WC[weeks][:, columns].sum(axis=0).astype(np.float64)
        n_V = judged.n_WC[weeks][:, columns].sum(axis=0).astype(np.float64)
        K_V, N_V = reference.k_WC[:, columns].sum(axis=0), reference.n_WC[:, columns].sum(axis=0)
        found = _where(k_V - n_V * K_V / np.maximum(N_V, 1), k_V + n_V * K_V / np.maximum(N_V, 1))
        if found is not None:
            return f", mostly in {field} {judged.cells[columns[found]][-1]}"
    return ""


def _mostly_of_amount(run: Run, observed: Observed) -> str:
    for name, judged in observed.judged.amounts.items():
        reference = observed.reference.amounts[name]
        columns = [c for c, cell in enumerate(judged.cells) if cell[:-1] == run.series.cell]
        weeks = slice(run.found, run.last + 1)
        n_V, sum_V = judged.n_WC[weeks][:, columns].sum(axis=0), judged.sum_WC[weeks][:, columns].sum(axis=0)
        N_V = np.maximum(reference.n_WC[:, columns].sum(axis=0), 1)
        found = _where(sum_V - n_V * reference.sum_WC[:, columns].sum(axis=0) / N_V, n_V)
        if found is not None:
            return f", mostly in {name.partition('|')[2]} {judged.cells[columns[found]][-1]}"
    return ""


def _where(excess_V: FloatArray, usual_V: FloatArray) -> int | None:
    """Return the place that holds most of an excess, and more of it than of the events that could show it."""
    total = float(excess_V.sum())
    if total == 0 or float(usual_V.sum()) == 0 or len(excess_V) < 2:
        return None
    share_V = np.maximum(excess_V / total, 0)
    share_V = share_V / share_V.sum()
    place = int(np.argmax(share_V))
    is_most = share_V[place] >= _MOSTLY and share_V[place] - usual_V[place] / usual_V.sum() >= _MORE_THAN_ITS_SHARE
    return place if is_most else None


def _often(now: float, before: float) -> str:
    """Return "is 3x as frequent (30 %, 10 % before)"."""
    if before == 0:
        return f"is there for the first time ({_percent(now)})"
    if now == 0:
        return f"is gone ({_percent(before)} before)"
    return f"is {_ratio(now / before)} as frequent ({_percent(now)}, {_percent(before)} before)"


def _follows(first: str, then: str, now: float, before: float) -> str:
    if before == 0:
        return f"`{then}` follows `{first}` for the first time ({_percent(now)})"
    if now == 0:
        return f"`{then}` no longer follows `{first}` ({_percent(before)} before)"
    often = f"{_ratio(now / before)} as often ({_percent(now)}, {_percent(before)} before)"
    return f"`{then}` follows `{first}` {often}"


def _ratio(ratio: float) -> str:
    """Return "3x", "1.6x", "0.31x"."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2g}x"


def _percent(share: float) -> str:
    """Return a share as a person says it, to two digits."""
    percent = 100 * share
    if percent >= 10 or percent == 0:
        return f"{percent:.0f} %"
    return f"{percent:.2g} %" if percent >= 0.01 else "under 0.01 %"


def _day(time_us: int) -> str:
    day = datetime.fromtimestamp(time_us / 1e6, UTC)
    return f"{day.day} {day:%B %Y}"
