"""Which of the other columns a model may read, and why the rest stay out.

What may tell the answer is never proposed: a column whose name speaks of fraud, outcomes, scores or what was found out
afterwards is listed as left out, for a person to judge. So is what says nothing new: the time again, the user again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fraud.columns import MAX_COLUMNS
from pipelines.proposal.columns import Column, word_set
from pipelines.proposal.roles import KEY_WORDS, Doubt, Roles, names_only, rises

_LEAK_WORDS = word_set(
    "fraud fraudulent isfraud label labels target class scenario score scores scored risk resolution resolved outcome "
    "banned ban chargeback chargebacks dispute disputed verdict flag flagged suspicious suspicion blocked reported "
    "confirmed decision declined accepted approved rejected cancelled review reviewed investigation alert alerted "
    "default defaulted anomaly malicious attack is after status result response"
)
_AMOUNT_WORDS = ("amount", "amt", "price", "value", "total", "sum", "paid", "cost")
_ENTITY_WORDS = word_set(
    "payee beneficiary recipient receiver counterparty device terminal merchant merch shop store seller vendor ip "
    "dest destination to page address email phone iban atm fingerprint imei creditor ipaddress deviceid terminalid "
    "merchantid account acct card cc customer bank receiving"
)
_CODE_WORDS = word_set("code mcc zip postcode category cat type kind country id")

_MAX_CATEGORIES = 1000
_MAX_CHARACTERS = 40
_MAX_NUMERIC = 24
_FEW_ROWS = 100  # below, nothing is concluded from how often values repeat
_MIN_SHARED_USERS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRoles:
    """What a model may read. left_out: (column, why) of each that it may not."""

    amount: Column | None
    has_negative: bool
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    entity: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    doubts: tuple[Doubt, ...]

    @property
    def names(self) -> frozenset[str]:
        """Return the columns that a model may read."""
        amount = () if self.amount is None else (self.amount.name,)
        return frozenset((*amount, *self.numeric, *self.categorical, *self.entity))


def without(fields: FieldRoles, names: Sequence[str]) -> FieldRoles:
    """Return the fields without those columns."""

    def kept(columns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(column for column in columns if column not in names)

    return replace(
        fields,
        amount=None if fields.amount is not None and fields.amount.name in names else fields.amount,
        numeric=kept(fields.numeric),
        categorical=kept(fields.categorical),
        entity=kept(fields.entity),
    )


def is_suspect(column: Column) -> bool:
    """Return True where the name says that the column may tell the answer."""
    said = set(column.words)
    return bool(said & _LEAK_WORDS) or "".join(column.words) in _LEAK_WORDS


def fields_of(columns: Sequence[Column], roles: Roles) -> FieldRoles:
    """Return what to declare in [fields] of the columns that have no role; the label's own are not among them."""
    taken = {column.name for column in roles.columns}
    left_out: list[tuple[str, str]] = []
    doubts: list[Doubt] = []
    open_columns: list[Column] = []
    for column in columns:
        if column.name in taken:
            continue
        why = "may tell the answer" if is_suspect(column) else _says_nothing(column, roles)
        if why:
            left_out.append((column.name, why))
        else:
            open_columns.append(column)
    amount = _amount(open_columns)
    has_negative = False
    if amount is not None and amount.number_N is not None:
        open_columns.remove(amount)
        has_negative = bool(np.nanmin(amount.number_N) < 0)
        if has_negative:
            doubts.append(Doubt("fields.negative", "there are negative amounts"))
    chosen: dict[str, list[str]] = {"numeric": [], "categorical": [], "entity": []}
    for column in open_columns:
        kind, doubt = _kind(column, roles)
        if kind in chosen:
            chosen[kind].append(column.name)
            if doubt:
                doubts.append(Doubt(f"fields.{kind}", f"{column.name!r}: {doubt}"))
        else:
            left_out.append((column.name, kind))
    why = f"a number like the others; the first {_MAX_NUMERIC} are proposed"
    left_out += [(name, why) for name in chosen["numeric"][_MAX_NUMERIC:]]
    return FieldRoles(
        amount=amount,
        has_negative=has_negative,
        numeric=tuple(chosen["numeric"][:_MAX_NUMERIC]),
        categorical=tuple(chosen["categorical"]),
        entity=tuple(chosen["entity"]),
        left_out=tuple(left_out[:MAX_COLUMNS]),
        doubts=tuple(doubts),
    )


def _says_nothing(column: Column, roles: Roles) -> str | None:
    """Return why a column adds nothing to those that have a role."""
    if column.n_there == 0:
        return "empty in the rows looked at"
    if column.n_values == 1 and column.n_null == 0:
        return "one value in all rows looked at"
    if column.time is not None and column.time.kind != "number":
        return "another time; one is read, and what happens later must not be"
    if column.time is not None and column.time.is_epoch and not column.is_id:
        return "another time, as a number"
    if _follows_the_time(column, roles):
        return "says the time again: it rises with it"
    if column.n_there >= _FEW_ROWS and _names_the_user(column, roles.user):
        return "says the user again"
    return None


def _follows_the_time(column: Column, roles: Roles) -> bool:
    number_N, clock = column.number_N, roles.clock
    if number_N is None or clock is None or column.n_null or len(number_N) < _FEW_ROWS or column.n_values < 3:
        return False
    everyone_N = np.zeros(len(number_N), dtype=np.int64)
    return rises(number_N, everyone_N, clock.time_us_N)


def _names_the_user(column: Column, user: Column) -> bool:
    """Return True where each user has one value, and nearly each value one user: a name, a birthday."""
    there_N = (column.code_N >= 0) & (user.code_N >= 0)
    pairs = np.unique(np.stack([user.code_N[there_N], column.code_N[there_N]]), axis=1).shape[1]
    n_users = len(np.unique(user.code_N[there_N]))
    return (
        n_users >= _MIN_SHARED_USERS and user.per_value >= 2 and pairs == n_users and column.n_values >= 0.5 * n_users
    )


def _amount(columns: Sequence[Column]) -> Column | None:
    numbers = [c for c in columns if c.number_N is not None and not set(c.words) & KEY_WORDS]
    for word in _AMOUNT_WORDS:
        named = [c for c in numbers if word in c.words]
        if named:
            return min(named, key=lambda c: (len(c.words), c.n_null))
    return None


def _kind(column: Column, roles: Roles) -> tuple[str, str]:
    """Return (numeric, categorical or entity, a doubt), or why it is none of these and ""."""
    has_few_rows = column.n_there < _FEW_ROWS
    if names_only(column, _ENTITY_WORDS) and column.is_id:
        if not has_few_rows and column.n_values <= 12:
            return "categorical", ""
        return "entity", ""
    if column.number_N is not None and not (column.is_integer and column.is_id and _is_code(column)):
        if np.isfinite(column.number_N).all() or column.n_null:
            return "numeric", ""
        return "holds NaN or infinities, which are no numbers here", ""
    if not column.is_id:
        return "neither text, nor integers, nor numbers", ""
    if column.mean_characters > _MAX_CHARACTERS:
        return "long text", ""
    if not has_few_rows and column.n_values > 0.8 * column.n_there:
        return "hardly a value stands twice", ""
    if column.n_values <= _MAX_CATEGORIES:
        return "categorical", ""
    if _is_shared(column, roles.user):
        return "entity", f"{column.n_values:,} values, most of them seen with several users"
    return f"{column.n_values:,} values, most of them of one user", ""


def _is_code(column: Column) -> bool:
    """Return True for integers that are names of something, not amounts of it."""
    return bool(set(column.words) & (_CODE_WORDS | KEY_WORDS)) or column.n_values <= 20


def _is_shared(column: Column, user: Column) -> bool:
    there_N = column.code_N >= 0
    pairs = np.unique(np.stack([column.code_N[there_N], user.code_N[there_N]]), axis=1)
    return bool(np.median(np.bincount(pairs[0])[np.unique(pairs[0])]) >= 2)
