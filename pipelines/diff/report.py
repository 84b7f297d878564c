"""What `fraud models diff` found, as words and as JSON: A is the bundle that decides now, B the one that would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fraud.changes import Moved, Movements, Outcome, PairedTotal
from fraud.decisions import DECISIONS
from fraud.events import IntArray
from fraud.segments import Order, Segment

Json = dict[str, Any]  # Any: JSON
N_SHOWN = 6  # segments, and orders, that are worth a line


class Named(NamedTuple):
    """A bundle by the name of its model and its version."""

    model: str
    version: str


class Event(NamedTuple):
    """A decision event that changes. is_fraud: None where nobody says."""

    event_id: str
    ts: str | None
    type: str
    amount: float | None
    decision_a: str
    decision_b: str
    score_a: float
    score_b: float
    is_fraud: bool | None


class Affected(NamedTuple):
    """A user whose decisions change in one direction: how many, of which amounts, and the one that matters most."""

    user_id: str
    changed: int
    amount: float | None
    frauds: int
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What changes. since, until: RFC 3339, None for the start and the end of the log. n: decision events compared.

    matrix: by A's decision, then B's. stricter, milder: the users affected either way, known frauds first, then the
    largest amounts. limits: what a reader must know to believe the rest.
    """

    a: Named
    b: Named
    since: str | None
    until: str | None
    n: int
    n_users: int
    n_stricter: int
    n_milder: int
    n_changed_users: int
    matrix: IntArray
    movements: Movements
    outcome: Outcome | None
    alert_budget: float
    segments: tuple[Segment, ...]
    orders: tuple[Order, ...]
    stricter: tuple[Affected, ...]
    milder: tuple[Affected, ...]
    limits: tuple[str, ...]

    @property
    def n_changed(self) -> int:
        """Return how many decisions change."""
        return self.n_stricter + self.n_milder

    @property
    def alert_rates(self) -> tuple[float, float]:
        """Return the share of the events that A alerts, and B."""
        n = int(self.matrix.sum())
        return 1 - int(self.matrix[0].sum()) / n, 1 - int(self.matrix[:, 0].sum()) / n

    @property
    def telling_segments(self) -> tuple[Segment, ...]:
        """Return the segments in which clearly more changes than elsewhere, the clearest first."""
        clear = (segment for segment in self.segments if segment.stands_out and segment.z > 0)
        return tuple(sorted(clear, key=lambda segment: -segment.z))

    def words(self) -> list[str]:
        """Return what changes in a few sentences, the most important first."""
        if not self.n_changed:
            return [f"Nothing changes: A and B decide all {self.n:,} events alike."]
        return [*self._volume(), *self._worth(), *self._where()]

    def to_json(self) -> Json:
        """Return the figures by name."""
        rate_a, rate_b = self.alert_rates
        counts = self.matrix.tolist()
        matrix = {row: dict(zip(DECISIONS, counts[place], strict=True)) for place, row in enumerate(DECISIONS)}
        return {
            "a": self.a._asdict(),
            "b": self.b._asdict(),
            "since": self.since,
            "until": self.until,
            "decision_events": self.n,
            "users": self.n_users,
            "changed": self.n_changed,
            "changed_users": self.n_changed_users,
            "stricter": self.n_stricter,
            "milder": self.n_milder,
            "matrix": matrix,
            "alert_rate": {"a": rate_a, "b": rate_b},
            "alert_budget": self.alert_budget,
            "moved": {name: moved._asdict() for name, moved in _movements(self.movements)},
            "outcome": None if self.outcome is None else _outcome_json(self.outcome),
            "segments": [segment._asdict() | {"share": segment.share} for segment in self.segments],
            "orders": [
                order._asdict() | {"share": order.share, "share_other": order.share_other} for order in self.orders
            ],
            "stricter_users": [_affected_json(user) for user in self.stricter],
            "milder_users": [_affected_json(user) for user in self.milder],
            "words": self.words(),
            "limits": list(self.limits),
        }

    def _volume(self) -> list[str]:
        rate_a, rate_b = self.alert_rates
        moved = self.movements
        lines = [
            f"{self.n_changed:,} of {self.n:,} decisions change ({self.n_changed / self.n:.2%}), of "
            f"{self.n_changed_users:,} of {self.n_users:,} users: B is stricter in {self.n_stricter:,}, milder in "
            f"{self.n_milder:,}.",
            f"Alerts: {rate_a:.2%} of the decisions under A, {rate_b:.2%} under B (policy.alert_budget = "
            f"{self.alert_budget:.2%}); {_moved_words('newly', moved.newly_alerted)}, "
            f"{_moved_words('no longer', moved.no_longer_alerted)}.",
        ]
        if moved.newly_blocked.n or moved.no_longer_blocked.n:
            newly, no_longer = moved.newly_blocked, moved.no_longer_blocked
            lines.append(f"Blocked: {_moved_words('newly', newly)}, {_moved_words('no longer', no_longer)}.")
        return lines

    def _worth(self) -> list[str]:
        found = self.outcome
        if found is None:
            return []
        if not found.n_frauds:
            return [f"No fraud is known among the {found.n_judged:,} judged decisions."]
        lines = [
            f"Of {found.n_frauds:,} known frauds A catches {found.caught.a:,.0f} and B {found.caught.b:,.0f}: "
            f"{_moved_words('gained', found.gained)}, {_moved_words('lost', found.lost)}; {_difference(found.caught)}."
        ]
        if found.caught_at_equal is not None and abs(self.alert_rates[1] / max(self.alert_rates[0], 1e-12) - 1) > 0.05:
            lines.append(f"With as many alerts as A, B would catch {found.caught_at_equal:,.0f}.")
        if found.saved is not None:
            lines.append(
                f"Money saved: {found.saved.a:,.0f} under A, {found.saved.b:,.0f} under B; {_difference(found.saved)}."
            )
        return lines

    def _where(self) -> list[str]:
        lines: list[str] = []
        if telling := self.telling_segments:
            first = telling[0]
            lines.append(
                f"Most clearly in “{first.field}: {first.name}”: {first.share:.1%} of these decisions change, "
                f"{times(first.ratio)} the average."
            )
        if self.orders:
            lines.append(f"Order matters: {order_words(self.orders[0])}.")
        return lines


def order_words(order: Order) -> str:
    """Return how much changes after two events in one order, and in the other."""
    return (
        f"after {order.first} then {order.then} {order.share:.1%} of the decisions change, after {order.then} then "
        f"{order.first} {order.share_other:.1%}"
    )


def times(ratio: float | None) -> str:
    """Return "12x" or "1.4x"; a dash where there is no ratio."""
    if ratio is None:
        return "–"
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def signed(value: float) -> str:
    """Return a whole number with its sign; the minus is as wide as the plus."""
    return f"{round(value):+,}".replace("-", "−").replace("+0", "0")


def _difference(total: PairedTotal) -> str:
    return f"difference {signed(total.diff)} [{signed(total.ci[0])}, {signed(total.ci[1])}]"


def _moved_words(how: str, moved: Moved) -> str:
    amount = "" if moved.amount is None or not moved.n else f" (amounts of {moved.amount:,.0f})"
    return f"{moved.n:,} {how}{amount}"


def _movements(movements: Movements) -> list[tuple[str, Moved]]:
    return [
        ("newly_alerted", movements.newly_alerted),
        ("no_longer_alerted", movements.no_longer_alerted),
        ("newly_blocked", movements.newly_blocked),
        ("no_longer_blocked", movements.no_longer_blocked),
    ]


def _outcome_json(found: Outcome) -> Json:
    def total(one: PairedTotal | None) -> Json | None:
        return None if one is None else {"a": one.a, "b": one.b, "diff": one.diff, "ci": list(one.ci)}

    ap = None
    if found.ap is not None and found.ap_a is not None:
        ap = {"a": found.ap_a, "b": found.ap_a + found.ap.diff, "diff": found.ap.diff, "ci": [found.ap.lo, found.ap.hi]}
    return {
        "judged": found.n_judged,
        "frauds": found.n_frauds,
        "gained": found.gained._asdict(),
        "lost": found.lost._asdict(),
        "false_alarms_gained": found.false_gained,
        "false_alarms_lost": found.false_lost,
        "caught": total(found.caught),
        "money_saved": total(found.saved),
        "ap": ap,
        "caught_by_b_with_the_alerts_of_a": found.caught_at_equal,
    }


def _affected_json(user: Affected) -> Json:
    return user._asdict() | {"event": user.event._asdict()}
