"""What one process takes at a time, and what it holds right now: shared by all its connections, changed by one loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the HTTP edge; each is a setting of `fraud serve`.

    body_bytes: of one request; events: in one request, a batch counting as one. header_bytes: request line and headers.
    header_s, body_s: until they are complete; idle_s: without a request; write_s: for a reader that takes no answer.
    in_flight: requests being answered, 503 beyond it; in_flight_per_key: of one key, 429 beyond it. buffered_bytes: of
    all bodies that are held together, 503 beyond it. connections: open at once. write_buffer_bytes: of answers that
    wait for their reader. grace_s: for what is in flight when the process is told to stop.
    """

    body_bytes: int = 1 << 20
    events: int = 1000
    header_bytes: int = 16 << 10
    header_s: float = 5.0
    body_s: float = 5.0
    idle_s: float = 5.0
    write_s: float = 5.0
    in_flight: int = 512
    in_flight_per_key: int = 256
    buffered_bytes: int = 64 << 20
    connections: int = 4096
    write_buffer_bytes: int = 64 << 10
    grace_s: float = 20.0


@dataclass(slots=True)
class Load:
    """What a process holds. connections: but those that were refused; is_draining: it was told to stop."""

    connections: int = 0
    in_flight: int = 0
    buffered_bytes: int = 0
    is_draining: bool = False
