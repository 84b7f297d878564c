"""What ORDER and what TIME are worth to a scorer: it is fitted again on histories without the one, without the other.

Three sets hold the same examples, each at the end of its history (`fraud.histories`):

    intact  as they were
    order   what happened (type, amount, categories, entities and all that is known of them) is dealt out anew over the
            moments of the events before the example; bag and moments stay, which came when is gone
    time    the events in their order, without a clock

All three go through the one path of any log (`prepare`, `fit_model`), so a difference between them is what was taken
away. Intervals resample the real users, whose histories overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fraud.config import Config, DecisionsConfig, LabelsConfig, SplitConfig
from fraud.enrich import empty_carry, enrich
from fraud.events import BoolArray, Events, FloatArray, IntArray
from fraud.histories import GOLDEN, Histories, HistoryChunk, Keys, mixed
from fraud.learning import FittedModel
from fraud.logs import Log
from fraud.metrics import Examples
from fraud.ordering import Ordered
from fraud.pairing import Difference, difference, ranked
from fraud.preparation import Prepared, Progress, open_prepared, prepare
from fraud.quarantine import Quarantine
from fraud.scoring import enrich_spec
from fraud.splits import PARTS

VARIANTS = INTACT, ORDER, TIME = ("intact", "order", "time")
_OF_USERS = "users.npy"


class OpenedHistories(NamedTuple):
    """A prepared set of histories, its users held out and halved as the real ones; user_T, weight_T: of the tests."""

    prepared: Prepared
    user_T: IntArray
    weight_T: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """AP on intact histories, and by what was taken away (order, time) the AP without it and what that cost.

    None where it does not exist: no test fraud, or a log without a clock.
    """

    intact_ap: float | None
    without: Mapping[str, tuple[float, Difference] | None]

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Return {"intact": {"ap"}, "order": {"ap", "ap_diff", "ci"}, "time": likewise, or null}."""
        return {INTACT: {"ap": self.intact_ap}} | {
            name: None
            if one is None
            else {"ap": one[0], "ap_diff": one[1].diff, "ci": list(one[1].ci), "by_seed": list(one[1].by_fit)}
            for name, one in self.without.items()
        }

    def words(self, name: str) -> list[str]:
        """Return a sentence for each thing that was taken away."""
        told: list[str] = []
        for what, one in self.without.items():
            if one is None:
                continue
            lost, (low, high) = one[1].diff, one[1].ci
            interval = f"[{low:.3f}, {high:.3f}]"
            if low > 0:
                told.append(f"{what.upper()} is worth {lost:.3f} AP {interval} to {name} on these data")
            elif high < 0:
                told.append(f"{name} does better without {what.upper()} on these data: {lost:+.3f} AP {interval}")
            else:
                told.append(
                    f"what {what.upper()} is worth to {name} does not show on these data: {lost:+.3f} AP {interval}"
                )
        return told


def variants_of(chosen: Histories) -> tuple[str, ...]:
    """Return the sets that can be made: without a clock there is no time to take away."""
    return VARIANTS if chosen.has_clock else (INTACT, ORDER)


def prepare_variant(
    chosen: Histories, variant: str, config: Config, directory: Path, *, progress: Progress
) -> OpenedHistories:
    """Return the prepared set of one variant, written to `directory` (which must be empty or absent)."""
    change = {INTACT: _unchanged, ORDER: shuffled, TIME: _untimed}[variant]
    loads = tuple(partial(_ordered, chunk, change, config) for chunk in chosen.chunks if len(chunk.events))
    log = Log(
        partitions=loads,
        time_us=np.concatenate([load().events.time_us for load in loads]),
        rows_in=sum(len(chunk.events) for chunk in chosen.chunks),
        n_duplicates=0,
        n_users=chosen.of_users.shape[1],
        quarantine=Quarantine(),
        label_table=None,
        label_quarantine=Quarantine(),
        files=(),
        spill=None,
    )
    of_histories = replace(
        config,
        log=replace(config.log, event_id=None),
        fields=replace(config.fields, entity=()),
        sessions=replace(config.sessions, scope="user"),
        labels=LabelsConfig(column="label"),
        decisions=DecisionsConfig(),
        split=SplitConfig(by="column", column="part"),
    )
    prepare(log, of_histories, directory, progress=progress)
    np.save(directory / _OF_USERS, chosen.of_users)
    return open_histories(directory)


def open_histories(directory: Path) -> OpenedHistories:
    """Return what `prepare_variant` wrote."""
    prepared = open_prepared(directory)
    real_U, held_out_U, half_U, weight_U = np.load(directory / _OF_USERS)
    test_T = prepared.user_N[prepared.tests_N]
    return OpenedHistories(
        replace(prepared, held_out_U=held_out_U, half_U=half_U), real_U[test_T].astype(np.int64), weight_U[test_T]
    )


def worth_of(fits: Mapping[str, Sequence[FittedModel]], intact: OpenedHistories, config: Config) -> Worth:
    """Return what order and time are worth to one scorer: fits by variant, one for each seed, in the same order."""
    label_T = intact.prepared.label_N[intact.prepared.tests_N]
    tables = {
        variant: ranked(
            [
                Examples(score_N=one.test_logit_T, label_N=label_T, user_N=intact.user_T, amount_N=None)
                for one in of_variant
            ],
            budget=config.policy.alert_budget,
            seed=config.training.seed,
            weight_N=intact.weight_T,
        )
        for variant, of_variant in fits.items()
    }
    without: dict[str, tuple[float, Difference] | None] = {}
    for variant in VARIANTS[1:]:
        lost = difference(tables[INTACT], tables[variant]) if variant in tables else None
        ap_by_fit = tables[variant].ap_by_fit if variant in tables else None
        without[variant] = None if lost is None or ap_by_fit is None else (float(np.mean(ap_by_fit)), lost)
    intact_by_fit = tables[INTACT].ap_by_fit
    return Worth(intact_ap=None if intact_by_fit is None else float(np.mean(intact_by_fit)), without=without)


def shuffled(events: Events, key_U: Keys) -> Events:
    """Return the events with what happened dealt out anew over the moments before each user's last event.

    Each user keeps its bag, its times, its session ids and its last event. key_U: the seed of each user.
    """
    user_N = events.user_codes()
    is_last_N = np.zeros(len(events), dtype=np.bool_)
    is_last_N[events.user_starts[1:][np.diff(events.user_starts) > 0] - 1] = True
    draw_N = mixed(key_U[user_N] + np.arange(len(events)).astype(np.uint64) * GOLDEN)
    from_N = np.lexsort((draw_N, is_last_N, user_N))
    return replace(
        events,
        type=events.type.take(from_N),
        amount=None if events.amount is None else events.amount[from_N],
        numeric={name: column[from_N] for name, column in events.numeric.items()},
        categorical={name: column.take(from_N) for name, column in events.categorical.items()},
        entity={name: column.take(from_N) for name, column in events.entity.items()},
    )


def _untimed(events: Events, _key_U: Keys) -> Events:
    """Return the events in their order, with positions in place of times."""
    position_N = np.arange(len(events)) - events.user_starts[:-1][events.user_codes()]
    return replace(events, time_us=position_N, has_clock=False)


def _unchanged(events: Events, _key_U: Keys) -> Events:
    return events


def _ordered(chunk: HistoryChunk, change: Callable[[Events, Keys], Events], config: Config) -> Ordered:
    """Return one variant of some histories, with their labels and parts, as a log's partition gives them."""
    import pyarrow as pa

    events = _with_first_seen(change(chunk.events, chunk.key_U), config)
    user_N = events.user_codes()
    is_last_N: BoolArray = np.zeros(len(events), dtype=np.bool_)
    is_last_N[events.user_starts[1:] - 1] = True
    table = pa.table(
        {
            "row": pa.array(events.row),
            "label": pa.array(chunk.label_U[user_N], mask=~is_last_N),
            "part": pa.array(PARTS).take(pa.array(chunk.part_U[user_N])),
        }
    )
    return Ordered(events, table, 0)


def _with_first_seen(events: Events, config: Config) -> Events:
    """Return the events with "first seen in this history" in place of their entities, whose risk is carried already."""
    enriched, _ = enrich(events, empty_carry(events.n_users, enrich_spec(config)), enrich_spec(config))
    seen = {name: enriched.first_seen[name].astype(np.float64) for name in events.entity}
    numeric = {f"first_seen:{name}": np.where(column < 0, np.nan, column) for name, column in seen.items()}
    return replace(events, numeric={**events.numeric, **numeric}, entity={})
