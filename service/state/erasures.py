"""An erasure, and the record of it: which records lost their payload. It is chained like any other, and names no user.

Without it a missing payload is a broken record. Whoever deletes a payload by hand must add such a record after the last
head that an operator keeps, and there `fraud audit verify` counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from service.state.chain import chain_rows, record_id
from service.state.store import ShardLost

if TYPE_CHECKING:
    from service.state.sql import Execute

# How the payload of an erasure begins. No other payload may, so that nothing a client sends can pass for one.
ERASURE_MARK = b"fraud-erasure\n"

# A session's id begins with its user's, unless the log has ids of its own; then the user's events name it.
_ERASE_LABELS = """
DELETE FROM labels WHERE user_id = ?
    OR session_id IN (SELECT session_id FROM events WHERE user_id = ?)
    OR (session_id >= ? AND session_id < ? AND substr(session_id, CAST(? AS INTEGER)) NOT LIKE ?)
RETURNING 1
"""


class Erasure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When records were erased, and which: numbers by shard, rising."""

    stored_us: int
    erased: dict[str, list[int]]


_decoder = msgspec.json.Decoder(Erasure)


def erasure_payload(records: Iterable[tuple[int, int]], *, stored_us: int) -> bytes:
    """Return the payload that says that these (shard, number) were erased."""
    numbers: dict[str, list[int]] = {}
    for shard, number in sorted(records):
        numbers.setdefault(str(shard), []).append(number)
    return ERASURE_MARK + msgspec.json.encode(Erasure(stored_us, numbers))


def is_erasure(payload: bytes | None) -> bool:
    """Return True for the payload of an erasure, which is no answer."""
    return payload is not None and payload.startswith(ERASURE_MARK)


def erased_numbers(payload: bytes) -> Mapping[int, list[int]] | None:
    """Return the erased numbers by shard, if this is the payload of an erasure; None for any other."""
    if not is_erasure(payload):
        return None
    try:
        erasure = _decoder.decode(payload[len(ERASURE_MARK) :])
        return {int(shard): numbers for shard, numbers in erasure.erased.items()}
    except ValueError:  # msgspec's errors are ValueErrors too; a payload that hashes right was never like this
        return None


def erase_user(execute: Execute, user_id: str, *, shard: int, number: int, stored_us: int) -> int | None:
    """Delete all of a user and chain the record that says which records lost their payload; return how many did.

    None where nothing was kept of the user. Raises ShardLost where the chain is gone.
    """
    n_found = len(execute("DELETE FROM users WHERE user_id = ? RETURNING 1", (user_id,)))
    erased = execute(
        "UPDATE records SET user_id = NULL, snapshot = NULL, ordinal = NULL, payload = NULL, erased_by = ? "
        "WHERE user_id = ? RETURNING shard, number",
        (record_id(shard, number), user_id),
    )
    n_found += len(erased)
    n_found += len(execute("DELETE FROM snapshots WHERE user_id = ? RETURNING 1", (user_id,)))
    begin, end = f"{user_id}@", f"{user_id}A"  # "A" follows "@": the range of all texts that begin so
    values = (user_id, user_id, begin, end, len(begin) + 1, "%@%")
    n_found += len(execute(_ERASE_LABELS, values))
    n_found += len(execute("DELETE FROM events WHERE user_id = ? RETURNING 1", (user_id,)))
    if not n_found:
        return None
    head = execute("SELECT head_number, head_hash FROM shards WHERE shard = ?", (shard,))
    if not head:
        raise ShardLost("the chain of this process is gone from the state store; it was replaced by an older one")
    payload = erasure_payload(((row[0], row[1]) for row in erased), stored_us=stored_us)
    (link,) = chain_rows((head[0][0], head[0][1]), shard, {number: payload})
    execute("INSERT INTO records (shard, number, payload) VALUES (?, ?, ?) RETURNING 1", (shard, number, payload))
    execute("INSERT INTO chain (shard, number, payload_sha256, hash) VALUES (?, ?, ?, ?) RETURNING 1", link)
    execute("UPDATE shards SET head_number = ?, head_hash = ? WHERE shard = ? RETURNING 1", (number, link[3], shard))
    return len(erased)
