"""`/v1/score`: the events of a request alone, as `fraud score` of a log of just these events."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import lt

import msgspec

from fraud.decisions import DECISIONS, REVIEW
from fraud.entities import EntityTable
from fraud.live import LiveScores, score_rows
from fraud.rows import EventRow, sort_key
from service.answers import Answer, EventLine, instant
from service.journal import Journal
from service.models import Served
from service.payloads import ENCODER, Reason, ScoreRecord, Warned, risk_cells
from service.schemas import ScoreRequest
from service.telling import knows_all, model_name, reasons_of, rule_at, warnings_of

_NAMES = (*DECISIONS, None)  # NO_DECISION is -1, the last


def score_requests(
    served: Served,
    requests: Sequence[ScoreRequest],
    tables: Mapping[str, EntityTable],
    journal: Journal | None,
    counts: Counter[str],
) -> tuple[list[bytes], LiveScores | None]:
    """Return the answer to each request and what was scored (None: nothing); the records are added to the journal.

    Without a journal the answers are degraded: nothing of them is kept. counts: to which values nobody knows are added.
    """
    if not requests:
        return [], None
    scorer, model = served.bundle.scorer, model_name(served)
    by_id = scorer.config.log.event_id is not None
    orders = [_order(request.events, by_id=by_id) for request in requests]
    rows_U = [[request.events[i] for i in order] for request, order in zip(requests, orders, strict=True)]
    scores = score_rows(scorer, [request.user_id for request in requests], rows_U, tables)
    starts = scores.enriched.events.user_starts.tolist()
    score_N, decision_N = scores.score_R.tolist(), scores.decision_R.tolist()
    cells_N = risk_cells(scores.risk, list(range(len(score_N))))
    told_U = [
        _told(decision_N[first:last], first, explains=request.explain)
        for request, first, last in zip(requests, starts, starts[1:], strict=False)
    ]
    told = [row for row in told_U if row is not None]
    reasons_of_row = dict(zip(told, reasons_of(served, scores, told), strict=True))
    answers: list[bytes] = []
    for u, (request, rows, order) in enumerate(zip(requests, rows_U, orders, strict=True)):
        first, last = starts[u], starts[u + 1]
        decisions = decision_N[first:last]
        row = told_U[u]
        reasons: list[Reason] = [] if row is None else [*rule_at(served, scores, row), *reasons_of_row[row]]
        decision_id = None if journal is None else journal.next_id()
        lines = [
            EventLine(
                row.event_id,
                row.type,
                instant(row.time_us),
                score,
                _NAMES[decision],
                None if decision_id is None else f"{decision_id}.{i}",
            )
            for i, (row, score, decision) in enumerate(zip(rows, score_N[first:last], decisions, strict=True))
        ]
        warnings: list[Warned] = []
        if not knows_all(served, rows):
            warnings = [
                msgspec.structs.replace(warned, path=f"events.{at}.{warned.path}")
                for row, at in zip(rows, order, strict=True)
                for warned in warnings_of(served, row)
            ]
            counts["unknown_values"] += len(warnings)
        answer = ENCODER.encode(
            Answer(
                decision_id=decision_id,
                score=score_N[last - 1],
                risk=served.risk_percentile(score_N[last - 1]),
                decision=DECISIONS[max(*decisions, 0)],
                reasons=reasons,
                events=lines,
                model=model,
                policy_version=served.policy_version,
                warnings=warnings,
                degraded=journal is None,
            )
        )
        if journal is not None:
            record = ScoreRecord(
                salt=secrets.token_hex(8),
                user_id=request.user_id,
                rows=rows,
                risk=cells_N[first:last],
                explain=request.explain,
                at_us=journal.now_us(),
                model=model,
                policy_version=served.policy_version,
                answer=msgspec.Raw(answer),
            )
            journal.add(request.user_id, ENCODER.encode(record))
        answers.append(answer)
    return answers, scores


def _told(decisions: Sequence[int], first: int, *, explains: bool) -> int | None:
    """Return the row that reasons are given for: of the most severe decision, the last of several; None where of none.

    Where reasons are asked for and every event may pass, those of the last event. first: the row of the first decision.
    """
    severest = max(decisions)
    if severest >= REVIEW:
        return first + len(decisions) - 1 - decisions[::-1].index(severest)
    return first + len(decisions) - 1 if explains else None


def _order(rows: Sequence[EventRow], *, by_id: bool) -> Sequence[int]:
    """Return the places of some rows in the order of a user's events, in which most requests have them already."""
    times_us = [row.time_us for row in rows]
    if all(map(lt, times_us, times_us[1:])):
        return range(len(rows))
    keys = [sort_key(row, by_id=by_id) for row in rows]
    return sorted(range(len(keys)), key=keys.__getitem__)
