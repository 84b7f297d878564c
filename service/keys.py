"""`fraud keys`: keys of the API are made, listed and revoked. A key is shown once; the store keeps its hash."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime

from fraud.errors import ConfigError
from service.audit_command import wall_us
from service.auth import ROLES, key_hash
from service.state.opening import STATE_URL, open_existing_store, open_store
from service.state.store import KeyRow, Store

PREFIX = "frd_"  # by it a scanner finds a key that somebody published
_SHOWN = 12  # hex digits of a hash: what tells keys apart, and of no use to anyone else


def add_key(store: Store, role: str) -> str:
    """Return a new key of a role; only its hash is kept."""
    key = PREFIX + secrets.token_urlsafe(32)
    store.add_key(key_hash(key), role)
    return key


def revoke_key(store: Store, start: str) -> KeyRow:
    """Forget the one key whose hash begins so, and return it. Raises ConfigError where none does, or several do."""
    rows = [row for row in store.key_rows() if row.key_hash.hex().startswith(start)]
    if len(rows) != 1 or len(start) < 4:
        raise ConfigError(
            f"{start!r}: {len(rows)} keys begin so; expected 4 or more digits of one, see `fraud keys list`"
        )
    store.revoke_key(rows[0].key_hash)
    return rows[0]


def keys_command(arguments: Sequence[str]) -> int:
    """Run `keys add`, `keys list` or `keys revoke` and return its exit code. Raises ConfigError and StoreDown."""
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--state", default=STATE_URL, metavar="URL")
    shared.add_argument("--json", action="store_true")
    parser = argparse.ArgumentParser(prog="fraud keys", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("add", parents=[shared]).add_argument("--role", choices=tuple(ROLES), required=True)
    commands.add_parser("list", parents=[shared])
    commands.add_parser("revoke", parents=[shared]).add_argument("key", metavar="KEY")
    options = parser.parse_args(arguments)
    # The first key is made before the service first starts.
    opened = open_store if options.command == "add" else open_existing_store
    with closing(opened(options.state, now_us=wall_us)) as store:
        if options.command == "add":
            key = add_key(store, options.role)
            document: Mapping[str, object] = {"key": key, "role": options.role, "id": key_hash(key).hex()[:_SHOWN]}
            text = key
            sys.stderr.write("This key is shown once; the store keeps its hash alone.\n")
        elif options.command == "list":
            rows = store.key_rows()
            document = {"keys": [_shown(row) for row in rows]}
            text = (
                "\n".join("  ".join(_shown(row).values()) for row in rows) or "no keys: the service binds loopback only"
            )
        else:
            row = revoke_key(store, options.key)
            document = {"revoked": _shown(row)}
            text = f"revoked {'  '.join(_shown(row).values())}"
    sys.stdout.write(f"{json.dumps(document, indent=1) if options.json else text}\n")
    return 0


def _shown(row: KeyRow) -> dict[str, str]:
    made = datetime.fromtimestamp(row.created_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"id": row.key_hash.hex()[:_SHOWN], "role": row.role, "created": made}
