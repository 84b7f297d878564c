"""What an answer says beside its numbers: reasons in words, warnings about values nobody knows, which model it was.

The reasons come from the same explanation as `fraud explain`; here they are only asked for where somebody reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fraud.carry_pool import carry_from_bytes, carry_to_bytes
from fraud.enrich import Carry
from fraud.events import IntArray
from fraud.live import LiveScores, explained, explained_rows
from fraud.reasons import rule_reason
from fraud.rows import EventRow
from fraud.scoring import enrich_spec
from fraud.tokens import Risk
from fraud.verdicts import NO_RULE
from service.models import Served
from service.payloads import ModelName, Reason, Warned


def model_name(served: Served) -> ModelName:
    """Return which bundle it is, as answers say it."""
    return ModelName(served.name, served.version, served.sha256)


def reasons_at(
    served: Served, user_id: str, rows: Sequence[EventRow], before: Carry, risk: Risk, wanted: Sequence[int]
) -> list[list[Reason]]:
    """Return the reasons for the scores of the wanted rows (increasing), as words; before: the carry of one user."""
    told = explained(served.bundle.scorer, user_id, rows, before, risk, np.array(wanted, dtype=np.int64))
    return [[Reason(*reason) for reason in reasons] for reasons in told]


def reasons_of(served: Served, scores: LiveScores, rows: Sequence[int]) -> list[list[Reason]]:
    """Return what `reasons_at` does for some rows of a tick (increasing) whose contexts are all in it, all at once."""
    told = explained_rows(served.bundle.scorer, scores, np.array(rows, dtype=np.int64)) if rows else []
    return [[Reason(*reason) for reason in reasons] for reasons in told]


def rule_at(served: Served, scores: LiveScores, r: int) -> list[Reason]:
    """Return the rule that decided on a new event of a tick, as its first reason; empty where the model did."""
    rule = int(scores.rule_R[r])
    if rule == NO_RULE:
        return []
    index = int(scores.enriched.index_N[scores.new_R[r]])
    return [Reason(*rule_reason(served.bundle.scorer.policy.in_order[rule], index))]


def carry_of(carry: Carry, user: int, served: Served) -> Carry:
    """Return the carry of one of several users."""
    return carry_from_bytes(carry_to_bytes(carry, user), enrich_spec(served.bundle.scorer.config))


def risk_of_part(scores: LiveScores, first: int, last: int) -> Risk:
    """Return the risk of some rows of a tick."""
    return {name: risk_NR[first:last] for name, risk_NR in scores.risk.items()}


def warnings_of(served: Served, row: EventRow) -> list[Warned]:
    """Return a warning for each value of an event that the model was not trained on: it is scored as unknown."""
    warned: list[Warned] = []
    if row.type not in served.known_types:
        warned.append(Warned("unknown_type", "type", "no such type of event in the training data; scored as unknown"))
    for (name, known), value in zip(served.known_categories, row.categorical, strict=True):
        if value is not None and value not in known:
            warned.append(Warned("unknown_category", name, "no such value in the training data; scored as unknown"))
    return warned


def knows_all(served: Served, rows: Sequence[EventRow]) -> bool:
    """Return True where no event has a value to be warned about."""
    if not served.known_types.issuperset([row.type for row in rows]):
        return False
    columns = zip(*[row.categorical for row in rows], strict=True)
    return all(
        known.issuperset([value for value in column if value is not None])
        for (_, known), column in zip(served.known_categories, columns, strict=True)
    )


def session_ids_of(scores: LiveScores, users: Sequence[str]) -> list[str | None]:
    """Return the session of each new event of a tick: the log's own id, else `{user_id}@{its start, epoch us}`."""
    enriched, rows = scores.enriched, scores.new_R
    session = enriched.events.session
    if session is not None:
        return session.take(rows).to_objects().tolist()
    user_R: IntArray = enriched.events.user_codes()[rows].astype(np.int64)
    starts = enriched.session_start_us_N[rows].tolist()
    return [f"{users[user]}@{start_us}" for user, start_us in zip(user_R.tolist(), starts, strict=True)]
