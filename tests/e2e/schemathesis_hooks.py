"""What schemathesis cannot know from a schema: which times are past, and which faults no schema can rule out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import schemathesis
from hypothesis import strategies as st

# An event_id that stands twice, and an hour that its zone moves out of the range.
NO_SCHEMA_TELLS = {"conflicting_duplicate"}

times = st.datetimes(
    min_value=datetime(1991, 1, 1), max_value=datetime(2025, 12, 31),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))]),
)  # fmt: skip
schemathesis.openapi.format("date-time", times.map(lambda time: time.isoformat()))


@schemathesis.check
def valid_requests_are_accepted(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Fail where a request that keeps the schema is refused for a reason that the schema should have told."""
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or response.status_code < 400:
        return
    if response.status_code in (404, 503):
        return
    codes = {error["code"] for error in response.json()["errors"]} or {response.json()["code"]}
    assert codes <= NO_SCHEMA_TELLS, f"a valid request was refused: {codes}"
