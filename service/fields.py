"""The keys of a request, as the configuration inside a bundle declares them: one list for decoding, faults and OpenAPI.

"user_id", "events", "explain", "event_id", "type" and "ts" are named by the API, whatever the log's columns are called;
the declared fields keep their columns' names.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from fraud.config import Config
from fraud.errors import ConfigError

MAX_EVENTS = 1000
_NO_KEY = re.compile(r'["\\\x00-\x1f]')  # msgspec decodes no such key
_OF_EVENTS = ("event_id", "type", "ts")
OF_REQUESTS = ("user_id", "events", "explain")

Kind = Literal["text", "amount", "numeric", "integer"]


class Field(NamedTuple):
    """One key of an event. is_beside: it may stand beside "events" too, for every event that lacks it."""

    key: str
    kind: Kind
    role: str
    is_required: bool
    is_beside: bool


class Fields(NamedTuple):
    """What a bundle's events hold, in the order amount, numeric, categorical, entity, session, order.

    fixed_type: "event" where the log has no column of types. lowest_amount: 0, or -max_amount where negative ones are
    allowed. is_user_session: the session is the user, so requests do not name it.
    """

    declared: tuple[Field, ...]
    n_numeric: int
    n_categorical: int
    n_entity: int
    has_amount: bool
    has_session: bool
    has_order: bool
    is_user_session: bool
    fixed_type: bool
    max_type_characters: int
    lowest_amount: float
    max_amount: float
    max_events: int


def fields_of(config: Config, *, max_events: int = MAX_EVENTS) -> Fields:
    """Return the keys of requests for a bundle of this configuration.

    Raises ConfigError where a declared column has a name that the API uses otherwise, or where the log has no clock.
    """
    log, chosen = config.log, config.fields
    if not log.has_clock:
        raise ConfigError('log.time = "position": the service scores events by their time; expected a log with a clock')
    is_user_session = log.session == log.user
    declared = [Field(key, "amount", "amount", is_required=False, is_beside=True) for key in [chosen.amount] if key]
    declared += [Field(key, "numeric", "numeric", is_required=False, is_beside=True) for key in chosen.numeric]
    declared += [Field(key, "text", "categorical", is_required=False, is_beside=True) for key in chosen.categorical]
    declared += [Field(key, "text", "entity", is_required=False, is_beside=True) for key in chosen.entity]
    if log.session is not None and not is_user_session:
        declared.append(Field(log.session, "text", "session", is_required=True, is_beside=True))
    if log.order is not None:
        declared.append(Field(log.order, "integer", "order", is_required=True, is_beside=False))
    keys = [field.key for field in declared]
    for key in keys:
        if _NO_KEY.search(key):
            raise ConfigError(f"column {key!r}: a key of a request holds no quote, backslash or control character")
        if key in _OF_EVENTS:
            raise ConfigError(f"column {key!r}: a request uses that name otherwise; expected another column name")
        if keys.count(key) > 1:
            raise ConfigError(f"column {key!r} is declared twice; in a request each name has one meaning")
    n_types = max(1, len(log.type_columns))
    return Fields(
        declared=tuple(f._replace(is_beside=f.is_beside and f.key not in OF_REQUESTS) for f in declared),
        n_numeric=len(chosen.numeric),
        n_categorical=len(chosen.categorical),
        n_entity=len(chosen.entity),
        has_amount=chosen.amount is not None,
        has_session=log.session is not None and not is_user_session,
        has_order=log.order is not None,
        is_user_session=is_user_session,
        fixed_type=not log.type_columns,
        max_type_characters=256 * n_types + n_types - 1,
        lowest_amount=0.0 if chosen.negative == "refuse" else -chosen.max_amount,
        max_amount=chosen.max_amount,
        max_events=max_events,
    )
