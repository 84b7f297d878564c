"""Which column is the user, the time, the kind of event, its id: judged by the words of its name and by its content.

A name alone can lie, content alone can be a coincidence; where the two do not agree, or several columns would do, the
choice comes with a doubt that is written beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fraud.errors import DataError
from pipelines.proposal.columns import Column, IntArray, TimeReading, word_set

# Words that say "this is the name or the number of something", and words that say nothing at all.
KEY_WORDS = word_set("id ids no nr num number key uuid guid hash ref reference")
_ID_WORDS = KEY_WORDS | word_set("code name concept the cd")

_USER_WORDS = {
    word: weight
    for weight, words in (
        (10, "user uid userid users"),
        (9, "customer cust client customerid clientid"),
        (8, "member subscriber player person patient employee applicant policyholder"),
        (7, "account acct accountid acc"),
        (6, "card cc cardholder case caseid holder owner msisdn pan"),
        (4, "orig originator sender payer from source debtor"),
    )
    for word in words.split()
}
_TIME_WORDS = word_set("ts time timestamp datetime date dt when epoch unixtime created occurred")
_AFTERWARDS = word_set(
    "known reported report updated modified closed resolved resolution confirmed birth dob expiry expires end ended "
    "due banned blocked review reviewed processed settled last label delivered received valid"
)
_TYPE_WORDS = word_set("type action activity operation op kind verb eventtype")
_TYPE_NAMES = (("event",), ("event", "name"), ("concept", "name"))
_EVENT_WORDS = word_set("event transaction tx trans txn trx record row message log operation entry payment")
_COMPANION_WORDS = word_set("lifecycle transition")
_ORDER_WORDS = word_set("pos position seq sequence order idx index step offset rank")

MAX_TYPES = 1000
_FEW_USERS = 20
_MAX_NULL = 0.05  # of a column that must have a value: more, and the log would lose too much


class Doubt(NamedTuple):
    """What was not sure: the setting it is about and the words for a person."""

    setting: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Columns that every log needs. time is None where there is an order (`position`) but no clock."""

    user: Column
    time: Column | None
    position: Column | None
    types: tuple[Column, ...]
    event_id: Column | None
    session: Column | None
    order: Column | None
    doubts: tuple[Doubt, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return every column that has one of these roles."""
        single = (self.user, self.time, self.position, self.event_id, self.session, self.order)
        return (*(column for column in single if column is not None), *self.types)

    @property
    def clock(self) -> TimeReading | None:
        """Return the reading of the time column."""
        return None if self.time is None else self.time.time


def roles_of(columns: Sequence[Column], is_suspect: frozenset[str], source: str) -> Roles:
    """Return the role of each column that has one; is_suspect: names that may tell the label, which get none.

    Raises DataError where no column could be the user, or none the time or an order.
    """
    doubts: list[Doubt] = []
    usable = [column for column in columns if column.n_there and column.name not in is_suspect]
    time = _time(usable, doubts)
    others = [column for column in usable if column is not time]
    user = _user(others, doubts, columns, source)
    others = [column for column in others if column is not user]
    position = None if time is not None else _position(others, user, doubts)
    if time is None and position is None:
        raise DataError(_no_time(columns, source))
    others = [column for column in others if column is not position]
    event_id = _event_id(others, user, doubts)
    others = [column for column in others if column is not event_id]
    types = _types(others, doubts)
    others = [column for column in others if column not in types]
    session = next((c for c in others if _is_session(c)), None)
    order = None if time is None or time.time is None else _order(others, user, time.time, doubts)
    return Roles(
        user=user,
        time=time,
        position=position,
        types=types,
        event_id=event_id,
        session=session,
        order=order,
        doubts=tuple(doubts),
    )


def names_only(column: Column, words: Iterable[str]) -> bool:
    """Return True where the name says one of the words and nothing else but "id", "number" and the like."""
    said = [word for word in column.words if word not in _ID_WORDS and not word.isdigit()]
    return bool(said) and set(said) <= set(words)


def is_unique(column: Column, user: Column) -> bool:
    """Return True where hardly a value stands twice for one user (a repeated row may)."""
    pairs = np.unique(column.code_N.astype(np.int64) * (user.n_values + 2) + user.code_N)
    return column.n_there > 0 and len(pairs) >= 0.98 * len(column.code_N)


def rises(values_N: np.ndarray, group_N: IntArray, by_N: np.ndarray) -> bool:
    """Return True where the values never fall within a group when its rows are put in the order of `by_N`."""
    order = np.lexsort((values_N, by_N, group_N))
    falls = (np.diff(values_N[order]) < 0) & (np.diff(group_N[order]) == 0)
    return not falls.any()


def _time(columns: Sequence[Column], doubts: list[Doubt]) -> Column | None:
    ranked = sorted(columns, key=_time_rank, reverse=True)
    fitting = [column for column in ranked if _time_rank(column) >= 3]
    if not fitting:
        return None
    time, reading = fitting[0], fitting[0].time
    assert reading is not None  # it has a rank
    rivals = [column.name for column in fitting[1:] if _time_rank(column) >= 3]
    if rivals:
        doubts.append(Doubt("log.time", f"could also be {listed(rivals)}; only one is read"))
    if reading.kind == "naive":
        doubts.append(
            Doubt("log.zone", "the times have no zone; UTC is assumed: set the zone of the clock they are from")
        )
    if reading.kind == "number" and not reading.is_epoch:
        text = "small numbers, taken as seconds since some start: the hour of the day has no meaning then"
        doubts.append(Doubt("log.time_unit", text))
    return time


def _time_rank(column: Column) -> int:
    """Return how well a column would do as the time; 3 and more will do."""
    reading = column.time
    if reading is None or reading.share < 0.8 or column.share_null > 0.2:
        return 0
    said = set(column.words)
    named = 0 if not said & _TIME_WORDS else 3 if names_only(column, _TIME_WORDS | _EVENT_WORDS | {"at"}) else 2
    if said & _AFTERWARDS:
        named = -2
    if "day" in said or "days" in said or "hour" in said:
        named = min(named, 1)
    if reading.kind != "number":
        return 4 + named
    if reading.is_epoch and column.n_values > 1:
        return (3 if named >= 2 else 1) + named
    return 1 + named if named >= 3 and column.n_values > 2 else 0


def _user(columns: Sequence[Column], doubts: list[Doubt], every: Sequence[Column], source: str) -> Column:
    readable = [c for c in columns if c.is_id and c.share_null <= 0.2]
    named = sorted((c for c in readable if _user_rank(c) > 0), key=_user_rank, reverse=True)
    if named:
        user = named[0]
        rivals = [column.name for column in named[1:] if column.n_values > _FEW_USERS]
        if rivals:
            doubts.append(Doubt("log.user", f"could also be {listed(rivals)}"))
        if user.n_values == 1:
            doubts.append(Doubt("log.user", "there is one user in the rows looked at"))
        elif user.per_value < 1.2:
            doubts.append(
                Doubt("log.user", "hardly a user has two events in the rows looked at: there is little order")
            )
        return user
    repeating = [
        c
        for c in readable
        if c.n_values >= 5
        and 2 <= c.per_value <= len(c.code_N) / 5
        and (c.number_N is None or c.is_integer)
        and not names_only(c, _TYPE_WORDS)
        and not set(c.words) & {"amount", "amt", "price", "age", "lat", "long"}
    ]
    if not repeating:
        raise DataError(_no_user(every, source))
    user = max(repeating, key=lambda c: (bool(set(c.words) & KEY_WORDS), c.n_values))
    doubts.append(Doubt("log.user", "no name says so; of the columns whose values repeat it has the most values"))
    return user


def _user_rank(column: Column) -> float:
    if not names_only(column, [*_USER_WORDS, "bank"]):
        return 0.0
    weight = max(_USER_WORDS.get(word, 0) for word in column.words)
    # A person's surname is no key; and a value of its own on every row is no user where another column repeats.
    has_repeats = column.per_value >= 1.2 or len(column.code_N) < 100
    return weight + 0.5 * bool(set(column.words) & KEY_WORDS) - (0 if has_repeats else 4.5)


def _position(columns: Sequence[Column], user: Column, doubts: list[Doubt]) -> Column | None:
    for column in columns:
        number_N = column.number_N
        if not column.is_integer or number_N is None or column.share_null > _MAX_NULL:
            continue
        if set(column.words) & _ORDER_WORDS and column.n_values > 2 and np.nanmin(number_N) >= 0:
            doubts.append(Doubt("log.time", f"no column is a time; {column.name!r} gives the order of a user's events"))
            return column
    return None


def _event_id(columns: Sequence[Column], user: Column, doubts: list[Doubt]) -> Column | None:
    for column in columns:
        said = set(column.words)
        is_named = names_only(column, _EVENT_WORDS) and said & KEY_WORDS
        is_named = is_named or (said <= {"id", "uuid", "guid", "rowid"} or said & {"eventid", "transactionid", "txid"})
        if not is_named or not column.is_id or column.n_null:
            continue
        if is_unique(column, user):
            return column
        n_again = len(column.code_N) - column.n_values
        text = f"{column.name!r} is no event_id: its values stand again in {n_again:,} of {len(column.code_N):,} rows"
        doubts.append(Doubt("log.event_id", text))
    return None


def _types(columns: Sequence[Column], doubts: list[Doubt]) -> tuple[Column, ...]:
    few = [c for c in columns if c.is_id and c.n_values <= min(MAX_TYPES, max(len(c.code_N) // 2, 20))]
    # Without a null: a row without a type would be quarantined.
    named = [c for c in few if c.share_null <= _MAX_NULL and (_says_type(c) or c.words in _TYPE_NAMES)]
    if not named:
        return ()
    first = max(named, key=lambda c: (c.number_N is None, c.n_values))
    rivals = [c.name for c in named if c is not first]
    if rivals:
        doubts.append(Doubt("log.type", f"could also be {listed(rivals)}"))
    companions = [c for c in few if set(c.words) & _COMPANION_WORDS and not c.n_null and c is not first]
    return (first, *companions[:1])


def _says_type(column: Column) -> bool:
    return names_only(column, _TYPE_WORDS | _EVENT_WORDS | {"user"}) and bool(set(column.words) & _TYPE_WORDS)


def _is_session(column: Column) -> bool:
    return names_only(column, ("session", "visit", "sessionid")) and column.is_id and not column.n_null


def _order(columns: Sequence[Column], user: Column, clock: TimeReading, doubts: list[Doubt]) -> Column | None:
    """Return the column of integers that breaks ties of time, where there are ties to break."""
    code_N = user.code_N.astype(np.int64)
    for column in columns:
        number_N = column.number_N
        if number_N is None or not column.is_integer or column.n_null or not set(column.words) & _ORDER_WORDS:
            continue
        if rises(number_N, code_N, clock.time_us_N):
            return column
        doubts.append(Doubt("log.order", f"{column.name!r} does not rise with the time of a user's events: not used"))
    return None


def _no_user(columns: Sequence[Column], source: str) -> str:
    text = (
        f"{source}: no column could be the user: expected text or integers that repeat, one value for each customer, "
        f"account or case, under a name such as user_id; the columns are: {_seen(columns)}"
    )
    nearest = [column.name for column in columns if names_only(column, _USER_WORDS) and not column.is_id]
    return text + (f"; {listed(nearest[:3])} cannot be read as text or integers" if nearest else "")


def _no_time(columns: Sequence[Column], source: str) -> str:
    text = (
        f"{source}: no column could be the time: expected RFC 3339 text (2026-11-20T10:00:00Z), timestamps, or numbers "
        f"of seconds, milliseconds or microseconds since 1970 under a name such as ts; or, without a clock, integers "
        f"in the order of events under a name such as position; the columns are: {_seen(columns)}"
    )
    nearest = [c for c in columns if set(c.words) & _TIME_WORDS and c.n_there]
    return text + "".join(f"; {c.name!r} cannot be read as a time, it holds {c.shown}" for c in nearest[:3])


def _seen(columns: Sequence[Column]) -> str:
    return listed([column.name for column in columns][:20]) + (" ..." if len(columns) > 20 else "")


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    return ", ".join(repr(name) for name in names)
