"""`fraud audit verify`: is every record that was written still there, unchanged, in its place?

The chains are walked in batches, so memory does not grow with them; the service may go on writing meanwhile. What lies
in the store can only show that it agrees with itself. That nobody cut the end off and wrote it anew is shown by heads
kept elsewhere (`--head FILE`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from service.heads import Head, Heads
from service.state.chain import NO_HASH, ChainLink, Chains, link_hash, record_id, record_of_id
from service.state.erasures import ERASURE_MARK, erased_numbers

_BATCH = 500
_NO_END = (1 << 63) - 1


class Broken(NamedTuple):
    """What is wrong, in words, with the first bad record of a shard; number None: with the shard itself."""

    shard: int
    number: int | None
    text: str


class Verdict(NamedTuple):
    """What an audit found. n_new_erasures: those after the heads that were given. heads: where the chains end now."""

    n_shards: int
    n_records: int
    n_erased: int
    n_erasures: int
    n_new_erasures: int
    broken: tuple[Broken, ...]
    heads: Heads


class _Named(msgspec.Struct, frozen=True):
    """What a record says of its own place; the columns beside its payload must say the same."""

    user_id: str
    snapshot: int | None = None
    place: int | None = None


_named = msgspec.json.Decoder(_Named)


def verify(store: Chains, heads: Mapping[int, Head]) -> Verdict:
    """Return what is broken: the first bad record of each shard, if any. heads: those kept from an earlier audit."""
    known = {head.shard for head in store.shard_heads()}
    recorded = set(store.recorded_shards())
    shards = known | recorded | set(heads)
    erasures = _Erasures(store)
    walks: list[_Walk] = []
    broken: list[Broken] = []
    for shard in range(1, max(shards, default=0) + 1):
        # Numbers of shards are given one after the other: a gap was a shard.
        if shard not in known | recorded:
            broken.append(Broken(shard, None, "the whole shard is missing"))
            continue
        walk = _Walk(store, erasures, shard, kept=heads.get(shard))
        walks.append(walk)
        fault = walk.first_fault()
        if fault is not None:
            broken.append(fault)
    return Verdict(
        n_shards=len(walks),
        n_records=sum(walk.n_records for walk in walks),
        n_erased=sum(walk.n_erased for walk in walks),
        n_erasures=sum(walk.n_erasures for walk in walks),
        n_new_erasures=sum(walk.n_new_erasures for walk in walks),
        broken=tuple(broken),
        heads={walk.shard: walk.head for walk in walks},
    )


class _Erasures:
    """What erasures name; the last few that were asked for are remembered."""

    def __init__(self, store: Chains) -> None:
        self._store = store
        self._records: dict[str, frozenset[tuple[int, int]]] = {}

    def name(self, erased_by: str, record: tuple[int, int]) -> bool:
        """Return whether there is an erasure of this id, and it names the record."""
        if erased_by not in self._records:
            if len(self._records) == 8:
                self._records.pop(next(iter(self._records)))
            place = record_of_id(erased_by)
            found = None if place is None else self._store.record(*place)
            numbers = erased_numbers(b"" if found is None or found.payload is None else found.payload) or {}
            self._records[erased_by] = frozenset((shard, number) for shard, own in numbers.items() for number in own)
        return record in self._records[erased_by]


class _Walk:
    """A walk along one chain, up to the first record that is broken."""

    def __init__(self, store: Chains, erasures: _Erasures, shard: int, *, kept: Head | None) -> None:
        self.shard = shard
        self.head = Head(0, NO_HASH)
        self.n_records = self.n_erased = self.n_erasures = self.n_new_erasures = 0
        self._store = store
        self._kept = kept or Head(0, NO_HASH)
        self._erasures = erasures

    def first_fault(self) -> Broken | None:
        """Return the first broken record of the shard, if there is one."""
        own: Head | None = None
        while True:
            after = self.head.number
            links = self._store.chain(self.shard, after, _BATCH)
            for link in links:
                text = self._fault(link)
                if text is not None:
                    return Broken(self.shard, link.number, text)
            if extra := self._store.unchained(self.shard, after, links[-1].number if links else _NO_END):
                return Broken(self.shard, extra[0], "stands among the records, but not in the chain")
            if links:
                own = None
            elif own is not None:
                return self._end_fault(own)
            else:
                own = self._own_head()
                if own is None:
                    return Broken(self.shard, None, "the shard's own row is missing, its records are there")
                if own.number <= self.head.number:
                    return self._end_fault(own)
                # It is longer than it was when its links were read: the service may be writing. Look once more.

    def _own_head(self) -> Head | None:
        """Return where the store says that this chain ends."""
        return next((Head(row.number, row.hash) for row in self._store.shard_heads() if row.shard == self.shard), None)

    def _end_fault(self, own: Head) -> Broken | None:
        """Return what is wrong with the end of the chain: too short, too long, or another one."""
        last, kept = self.head, self._kept
        if own.number > last.number or kept.number > last.number:
            whose = "the store says" if own.number > last.number else "the heads that were kept say"
            end = max(own.number, kept.number)
            return Broken(
                self.shard, last.number + 1, f"the chain is cut after {last.number}; {whose} it went to {end}"
            )
        if own != last:
            return Broken(self.shard, last.number, f"the chain goes on here; the store says it ended at {own.number}")
        return None

    def _fault(self, link: ChainLink) -> str | None:
        """Return what is wrong with the next record in words, and step on to it."""
        previous, self.head = self.head, Head(link.number, link.hash)
        self.n_records += 1
        if link_hash(previous.hash, self.shard, link.number, payload_sha256=link.payload_sha256) != link.hash:
            before = previous.number or "the start"
            return f"does not follow from {before}: it was changed or moved, or one between was taken away"
        if previous.number < self._kept.number <= link.number and self.head != self._kept:
            return f"is not what stood at {self._kept.number} when the heads were kept: the chain was written anew"
        if not link.has_row:
            return "its row among the records is missing; an erasure leaves it"
        if link.payload is None:
            return self._erasure_fault(link)
        if hashlib.sha256(link.payload).digest() != link.payload_sha256:
            return "its payload was changed or exchanged"
        if link.erased_by is not None:
            return f"is marked as erased by {link.erased_by}, but its payload is there"
        if link.payload.startswith(ERASURE_MARK):
            return self._listed_fault(link, link.payload)
        return _column_fault(link, link.payload)

    def _erasure_fault(self, link: ChainLink) -> str | None:
        """Return why a missing payload is not one that was erased."""
        self.n_erased += 1
        if link.erased_by is None:
            return "its payload is missing, and no erasure is named"
        if not self._erasures.name(link.erased_by, (self.shard, link.number)):
            return f"its payload is missing, and erasure {link.erased_by} does not name it"
        if (link.user_id, link.snapshot, link.ordinal) != (None, None, None):
            return "is erased, but its user still stands there"
        return None

    def _listed_fault(self, link: ChainLink, payload: bytes) -> str | None:
        """Return what an erasure names that is there all the same."""
        self.n_erasures += 1
        self.n_new_erasures += link.number > self._kept.number
        numbers = erased_numbers(payload)
        if numbers is None:
            return "is an erasure that nobody can read"
        if (link.user_id, link.snapshot, link.ordinal) != (None, None, None):
            return "is an erasure, but a user stands beside it"
        for shard, listed in numbers.items():
            for start in range(0, len(listed), _BATCH):
                if back := self._store.unerased(shard, listed[start : start + _BATCH]):
                    return f"erased {record_id(shard, back[0])}, but its payload is there"
        return None


def _column_fault(link: ChainLink, payload: bytes) -> str | None:
    """Return what the columns beside a payload say otherwise than the payload: by them it is found and erased."""
    try:
        named = _named.decode(payload)
    except ValueError:  # msgspec's errors are ValueErrors too
        return None  # of no form that is known here: its hash is all there is to check
    if (named.user_id, named.snapshot, named.place) != (link.user_id, link.snapshot, link.ordinal):
        return "is filed under another user or place than its payload says"
    return None


def words(verdict: Verdict) -> Sequence[str]:
    """Return a verdict in lines for a person."""
    if verdict.broken:
        return [f"BROKEN {_place(fault)}: {fault.text}" for fault in verdict.broken]
    return [
        f"{verdict.n_records:,} records in {verdict.n_shards:,} chains: all there, unchanged, in order",
        f"{verdict.n_erased:,} of them erased by {verdict.n_erasures:,} erasures,"
        f" {verdict.n_new_erasures:,} of these since the heads that were kept",
    ]


def _place(fault: Broken) -> str:
    if fault.number is None:
        return f"shard {fault.shard}"
    return f"record {record_id(fault.shard, fault.number)} (number {fault.number} of shard {fault.shard})"
