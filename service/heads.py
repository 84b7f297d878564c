"""The ends of the chains, kept in a file outside of the store: what shows that nobody cut one off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from fraud.errors import ConfigError


class Head(NamedTuple):
    """The number and the hash of the last record of a chain."""

    number: int
    hash: bytes


Heads = dict[int, Head]


class _KeptHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    hash: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    heads: dict[int, _KeptHead]


def read_heads(path: Path) -> Heads:
    """Return the heads of a file; none where there is no file yet. Raises ConfigError where it is not one of ours."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        kept = msgspec.json.decode(content, type=_File)
        heads = {shard: Head(head.number, bytes.fromhex(head.hash)) for shard, head in kept.heads.items()}
    except ValueError:  # msgspec's errors are ValueErrors too
        raise ConfigError(f"--head {path}: not a file of heads; expected one that this command wrote") from None
    if kept.format != 1 or any(shard < 1 or len(head.hash) != 32 for shard, head in heads.items()):
        raise ConfigError(f"--head {path}: not a file of heads of format 1")
    return heads


def write_heads(path: Path, heads: Heads) -> None:
    """Write the heads of a file: all of it, or none."""
    kept = _File(1, {shard: _KeptHead(head.number, head.hash.hex()) for shard, head in sorted(heads.items())})
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
