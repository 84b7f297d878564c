"""Who may ask for what: API keys, of which only hashes are known, and the roles behind them.

A key is found by its SHA-256 in a dictionary. That is safe: what takes more or less time there depends on the hash, and
whoever could measure it would learn bits of a hash of 256 random bits, from which no key can be had; comparing with all
hashes would cost more with each key that is added. The one comparison that decides takes constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Literal

from fraud.errors import ConfigError

Role = Literal["scorer", "labeller", "analyst", "admin"]
Right = Literal["score", "events", "labels", "decisions", "timeline", "model", "erase", "metrics"]

ROLES: Mapping[Role, frozenset[Right]] = {
    "scorer": frozenset(("score", "events", "model")),
    "labeller": frozenset(("labels",)),
    "analyst": frozenset(("decisions", "timeline", "model", "score", "metrics")),
    "admin": frozenset(("score", "events", "labels", "decisions", "timeline", "model", "erase", "metrics")),
}


def key_hash(key: str) -> bytes:
    """Return what is stored of a key: its SHA-256. A key is random, so it needs no salt and no slow hash."""
    return hashlib.sha256(key.encode()).digest()


class Keys:
    """The known keys. roles: hash -> role; empty: every caller may do everything, from this machine alone."""

    def __init__(self, roles: Mapping[bytes, str]) -> None:
        self._known: dict[bytes, tuple[bytes, frozenset[Right]]] = {}
        self.replace(roles)

    def replace(self, roles: Mapping[bytes, str]) -> None:
        """Know these keys from now on, and no others; raises ConfigError for a role that there is none."""
        rights: dict[str, frozenset[Right]] = {**ROLES}
        for role in roles.values():
            if role not in rights:
                raise ConfigError(f"role {role!r} of an API key: expected one of {', '.join(ROLES)}")
        # One reference is swapped: a request sees the keys of before or of after, never half of each.
        self._known = {known: (known, rights[role]) for known, role in roles.items()}

    def __bool__(self) -> bool:
        return bool(self._known)

    def rights_of(self, key: bytes) -> frozenset[Right] | None:
        """Return what the holder of a key may do; None if there is no such key."""
        given = hashlib.sha256(key).digest()
        known, rights = self._known.get(given, (b"", None))
        return rights if hmac.compare_digest(known, given) else None


def is_loopback(host: str) -> bool:
    """Return True where an address or name can only mean this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_host(host: str, keys: Keys) -> None:
    """Raise ConfigError where the service would be open to others without any key."""
    if not keys and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: without API keys the service listens on this machine alone; expected 127.0.0.1, or add a "
            "key first: fraud keys add --role scorer --state URL"
        )
