"""The record of an erasure: which records lost their payload. It is chained like any other, and names no user.

Without it a missing payload is a broken record. Whoever deletes a payload by hand must add such a record after the last
head that an operator keeps, and there `fraud audit verify` counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

# How the payload of an erasure begins. No other payload may, so that nothing a client sends can pass for one.
ERASURE_MARK = b"fraud-erasure\n"


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
