"""What a session of the simulated bank is made of: event types, paces, states; and how beats make a story.

It knows no particular story (`stories`), no users, no clock and no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

EVENT_TYPES = (
    "login",
    "logout",
    "view_account",
    "view_statement",
    "view_card",
    "view_offers",
    "search_help",
    "chat_support",
    "credit_score_check",
    "loan_check",
    "add_payee",
    "change_password",
    "change_device",
    "change_avatar",
    "receive_transfer",
    "pay_bill",
    "transfer_out",
    "withdraw",
)
DECISION_TYPES = ("transfer_out", "withdraw")
AMOUNT_TYPES = ("receive_transfer", "pay_bill", "transfer_out", "withdraw")
PAYEE_TYPES = ("add_payee", "pay_bill", "transfer_out")  # of these, add_payee always names a new payee
KINDS = ("normal", "fraud", "order_decoy", "timing_decoy", "honest_same", "atypical")
STORIES = ("victim", "mule", "takeover")  # that a bank knows from its first day
LATER_STORY = "support"  # fraud of it begins only in a bank with eras
ALL_STORIES = (*STORIES, LATER_STORY)

MINUTE_S, HOUR_S = 60.0, 3600.0
# Time until the next event: log-normal, (median in seconds, standard deviation of the log).
HOLDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "tap": (7.0, 0.7),  # from one screen to the next
        "read": (30.0, 0.9),  # the screen is read, a form is filled in
        "wait": (4 * MINUTE_S, 0.9),  # for money that was announced
        "soon": (1.5 * MINUTE_S, 0.9),  # one is at it, and gets it done
        "later": (45 * MINUTE_S, 1.1),
        "hours": (3 * HOUR_S, 1.0),
        "day": (14 * HOUR_S, 0.8),
    }
)

P_FILL, P_FILL_AGAIN = 0.35, 0.35

_FILL = MappingProxyType({"view_offers": 0.3, "view_statement": 0.3, "view_card": 0.2, "search_help": 0.2})


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One state of a routine: what it emits, how long until the next event, and where it goes.

    What is missing to 1 in `goes` ends the session.
    """

    emits: Mapping[str, float]
    hold: str
    goes: Mapping[str, float]
    is_beat: bool = False  # the event belongs to the story, not to its filling
    amount_shift: float = 0.0
    p_new_payee: float = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Routine:
    """One class of session: a Markov chain, with the truth about its decision events. Weights are relative."""

    name: str
    kind: str
    weight: float
    start: Mapping[str, float]
    states: Mapping[str, State]
    story: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One step of a story: a type drawn from `emits`, the pace after it, and the chance that the step is repeated."""

    emits: Mapping[str, float]
    hold: str = "read"
    p_again: float = 0.0


def story_routine(name: str, *, kind: str, story: str, weight: float, beats: tuple[Beat, ...]) -> Routine:
    """Return the routine that plays the beats in order, with fillers between them and after the last (the decision)."""
    # A fraud and its decoys lean the same way: amounts and payees help against normal sessions, hardly between these.
    shift, p_new = (0.4, 0.6) if kind in ("fraud", "honest_same") else (0.25, 0.5)
    states: dict[str, State] = {}
    for i, beat in enumerate(beats):
        moves_on = 1.0 - beat.p_again
        if i + 1 < len(beats):
            goes = {f"fill{i}": moves_on * P_FILL, f"beat{i + 1}": moves_on * (1.0 - P_FILL)}
            after_fill = {f"fill{i}": P_FILL_AGAIN, f"beat{i + 1}": 1.0 - P_FILL_AGAIN}
        else:
            goes = {f"fill{i}": moves_on * 0.4, "logout": moves_on * 0.2}
            after_fill = {f"fill{i}": 0.4, "logout": 0.2}
        goes[f"beat{i}"] = beat.p_again
        states[f"beat{i}"] = State(
            emits=beat.emits, hold=beat.hold, goes=goes, is_beat=True, amount_shift=shift, p_new_payee=p_new
        )
        states[f"fill{i}"] = State(emits=_FILL, hold="read", goes=after_fill)
    states["logout"] = State(emits={"logout": 1.0}, hold="tap", goes={})
    return Routine(name=name, kind=kind, story=story, weight=weight, start={"beat0": 1.0}, states=states)
