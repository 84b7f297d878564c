"""The chains of records: what each record's hash covers, and the rows an audit reads.

A chain belongs to one process: it alone appends, so no two processes wait for one another. Numbers rise, gaps are
allowed (a number may be taken and its write refused), for each hash covers the one before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from service.state.store import StoredRecord

NO_HASH = bytes(32)  # what the first record of a shard follows


class ShardHead(NamedTuple):
    """The end of one chain: the number and hash of its last record (0 and NO_HASH before the first)."""

    shard: int
    name: str
    started_us: int
    number: int
    hash: bytes


class ChainLink(NamedTuple):
    """One record as an audit reads it; what is missing in `records` is None, has_row says whether the row is there."""

    number: int
    payload_sha256: bytes
    hash: bytes
    has_row: bool
    user_id: str | None
    snapshot: int | None
    ordinal: int | None
    payload: bytes | None
    erased_by: str | None


class Chains(Protocol):
    """What an audit reads. Every method may raise StoreDown."""

    def record(self, shard: int, number: int) -> StoredRecord | None:
        """Return a record, erased or not; None if there never was one."""
        ...

    def shard_heads(self) -> tuple[ShardHead, ...]:
        """Return the end of every chain, by shard."""
        ...

    def recorded_shards(self) -> tuple[int, ...]:
        """Return the shards that have a record or a link of a chain, whether or not they have a head."""
        ...

    def chain(self, shard: int, after: int, n: int) -> tuple[ChainLink, ...]:
        """Return the next n records of a chain after a number, with what is left of their payloads."""
        ...

    def unchained(self, shard: int, after: int, through: int) -> tuple[int, ...]:
        """Return those numbers of a shard in (after, through] that have a record and no link in the chain."""
        ...

    def unerased(self, shard: int, numbers: Sequence[int]) -> tuple[int, ...]:
        """Return those of a shard's numbers whose payload is there."""
        ...


def link_hash(previous: bytes, shard: int, number: int, *, payload_sha256: bytes) -> bytes:
    """Return the hash of a record in its chain."""
    return hashlib.sha256(previous + shard.to_bytes(8) + number.to_bytes(8) + payload_sha256).digest()


def chain_rows(
    head: tuple[int, bytes], shard: int, payloads: Mapping[int, bytes]
) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield (shard, number, payload_sha256, hash) for payloads by number, in order of number, from the head on."""
    last, previous = head
    for number in sorted(payloads):
        if number <= last:
            raise ValueError(f"record {number} of shard {shard}: numbers rise, and {last} is written already")
        payload_sha256 = hashlib.sha256(payloads[number]).digest()
        previous = link_hash(previous, shard, number, payload_sha256=payload_sha256)
        last = number
        yield shard, number, payload_sha256, previous


def record_id(shard: int, number: int) -> str:
    """Return how a record is named outside: the id of its decision."""
    return f"{shard:x}-{number:x}"


def record_of_id(text: str) -> tuple[int, int] | None:
    """Return (shard, number) of a record's id; None where it is not one as `record_id` writes it."""
    shard, _, number = text.partition("-")
    try:
        place = int(shard, 16), int(number, 16)
    except ValueError:
        return None
    return place if record_id(*place) == text and max(place) < 1 << 63 else None
