"""The simulated bank's customers at work: every kind of session as a Markov chain, honest, fraudulent and in between.

A session draws one routine (below, with its weight); the routine's chain then emits one event per state until it ends.
A state has a law of the event type, a law of the time until the NEXT event ("hold"), a shift of the log amount and a
probability that a transfer goes to a new payee. Nothing else depends on the state, so a forward recursion over these
tables (`oracle`) is the exact posterior.

`~` is any number of harmless events (view_offers, view_statement, ...), `==>` the pace that makes the fraud harmless.
After the last event of each line come a few fillers or a logout.

    victim    fraud, honest_same  login ~ check ~ transfer_out
              order_decoy         check ~ login ~ transfer_out                    (the calculator is open to the public)
              timing_decoy        login ~ check ==> 45 minutes ==> ~ transfer_out
                                  check = credit_score_check | loan_check, often repeated
    mule      fraud, honest_same  login ~ look ~ receive_transfer ~ cash
              order_decoy         receive_transfer ~ login ~ look ~ cash
              timing_decoy        login ~ look ~ receive_transfer ==> most of a day ==> ~ cash
                                  look = view_account | change_avatar, cash = withdraw | transfer_out
    takeover  fraud, honest_same  change_device ~ login ~ change ~ transfer_out
              order_decoy         login ~ change ~ change_device ~ transfer_out
              timing_decoy        change_device ~ login ~ change ==> hours ==> ~ transfer_out
                                  change = add_payee | change_password, sometimes repeated
    support   fraud, honest_same  login ~ chat_support ~ pay_bill ~ transfer_out (a false helpdesk: a fee first)
              order_decoy         login ~ pay_bill ~ chat_support ~ transfer_out
              timing_decoy        login ~ chat_support ~ pay_bill ==> hours ==> ~ transfer_out
                                  in a bank with eras alone: the honest ones from the start, the fraud from one day on
    none      atypical (fraud)    [login] ~ transfer_out | withdraw, as in "pay"
              normal              pay, browse, incoming, loan_shopping, housekeeping

Up to the decision event, a fraud and its order decoy have the same bag of events at the same pace; a fraud and its
timing decoy have the same types in the same order. Each decoy is DECOYS_PER_FRAUD times as frequent as its fraud.
Normal sessions hold all the types of the stories too, and now and then one of the patterns.

This file knows nothing of users, clocks or files.
"""

from dataclasses import replace
from types import MappingProxyType

from pipelines.bank.routines import LATER_STORY, STORIES, Beat, Routine, State, story_routine

SAME_PER_FRAUD = 0.12  # honest sessions drawn from the very law of the fraud: caps the precision near .89
ATYPICAL_PER_FRAUD = 0.08  # fraud without a story: caps the recall near .93
DECOYS_PER_FRAUD = 3.0  # of each of the two decoys

_LOOK = MappingProxyType(
    {
        "view_account": 0.45,
        "view_statement": 0.2,
        "view_card": 0.12,
        "view_offers": 0.13,
        "search_help": 0.07,
        "chat_support": 0.03,
    }
)


def _story_routines(
    story: str, *, fraud: tuple[Beat, ...], order: tuple[Beat, ...], timing: tuple[Beat, ...]
) -> tuple[Routine, ...]:
    return tuple(
        story_routine(f"{story}_{kind}", kind=kind, story=story, weight=weight, beats=beats)
        for kind, weight, beats in (
            ("fraud", 1.0, fraud),
            ("honest_same", SAME_PER_FRAUD, fraud),
            ("order_decoy", DECOYS_PER_FRAUD, order),
            ("timing_decoy", DECOYS_PER_FRAUD, timing),
        )
    )


# Scam, money mule and takeover; `hold` is the pace AFTER the beat.
_LOGIN = Beat(emits={"login": 1.0})
_CHECK = Beat(emits={"credit_score_check": 0.5, "loan_check": 0.5}, hold="soon", p_again=0.3)
_TRANSFER = Beat(emits={"transfer_out": 1.0}, p_again=0.1)
_PEEK = Beat(emits={"view_account": 0.6, "change_avatar": 0.4}, hold="wait")
_RECEIVE = Beat(emits={"receive_transfer": 1.0}, hold="soon")
_CASH = Beat(emits={"withdraw": 0.6, "transfer_out": 0.4}, p_again=0.15)
_DEVICE = Beat(emits={"change_device": 1.0})
_CHANGE = Beat(emits={"add_payee": 0.6, "change_password": 0.4}, hold="soon", p_again=0.2)
_DRAIN = Beat(emits={"transfer_out": 1.0}, p_again=0.2)

PLANTED = (
    *_story_routines(
        "victim",
        fraud=(_LOGIN, _CHECK, _TRANSFER),
        order=(_CHECK, _LOGIN, _TRANSFER),
        timing=(_LOGIN, replace(_CHECK, hold="later"), _TRANSFER),
    ),
    *_story_routines(
        "mule",
        fraud=(_LOGIN, _PEEK, _RECEIVE, _CASH),
        order=(replace(_RECEIVE, hold="wait"), _LOGIN, replace(_PEEK, hold="soon"), _CASH),
        timing=(_LOGIN, _PEEK, replace(_RECEIVE, hold="day"), _CASH),
    ),
    *_story_routines(
        "takeover",
        fraud=(_DEVICE, _LOGIN, _CHANGE, _DRAIN),
        order=(_LOGIN, _CHANGE, _DEVICE, _DRAIN),
        timing=(_DEVICE, _LOGIN, replace(_CHANGE, hold="hours"), _DRAIN),
    ),
)

_CHAT = Beat(emits={"chat_support": 1.0}, hold="soon", p_again=0.2)
_FEE = Beat(emits={"pay_bill": 1.0}, hold="soon")

LATER = _story_routines(
    LATER_STORY,
    fraud=(_LOGIN, _CHAT, _FEE, _DRAIN),
    order=(_LOGIN, _FEE, _CHAT, _DRAIN),
    timing=(_LOGIN, _CHAT, replace(_FEE, hold="hours"), _DRAIN),
)

_LOGOUT = State(emits={"logout": 1.0}, hold="tap", goes={})
_SETTINGS = MappingProxyType(
    {"change_device": 0.25, "change_avatar": 0.25, "add_payee": 0.2, "change_password": 0.15, "view_card": 0.15}
)
_CHECKS = MappingProxyType({"credit_score_check": 0.5, "loan_check": 0.5})
_PAYMENT = MappingProxyType({"transfer_out": 0.55, "withdraw": 0.45})


def _pay_states(decision: State) -> dict[str, State]:
    """Return the states of a plain payment around the given decision state."""
    return {
        "login": State(emits={"login": 1.0}, hold="tap", goes={"look": 0.45, "pay": 0.48, "bill": 0.07}),
        "look": State(emits=_LOOK, hold="read", goes={"look": 0.33, "pay": 0.55, "bill": 0.05}),
        "bill": State(emits={"pay_bill": 1.0}, hold="read", goes={"pay": 0.2, "after": 0.3, "logout": 0.2}),
        "pay": decision,
        "after": State(emits=_LOOK, hold="read", goes={"after": 0.3, "logout": 0.15}),
        "logout": _LOGOUT,
    }


_PAY_GOES = MappingProxyType({"pay": 0.12, "after": 0.3, "logout": 0.15})
_PAY_START = MappingProxyType({"login": 0.7, "look": 0.15, "pay": 0.15})  # the app often needs no new login

NORMAL = (
    Routine(
        name="pay",
        kind="normal",
        weight=0.55,
        start=_PAY_START,
        states=_pay_states(State(emits=_PAYMENT, hold="read", goes=_PAY_GOES)),
    ),
    Routine(
        name="browse",
        kind="normal",
        weight=0.17,
        start={"login": 0.8, "look": 0.2},
        states={
            "login": State(emits={"login": 1.0}, hold="tap", goes={"look": 1.0}),
            "look": State(emits=_LOOK, hold="read", goes={"look": 0.5, "money": 0.04, "avatar": 0.04, "logout": 0.12}),
            "money": State(emits={"receive_transfer": 1.0}, hold="read", goes={"look": 0.5, "pay": 0.1}),
            "pay": State(emits=_PAYMENT, hold="read", goes={"look": 0.2}),
            "avatar": State(emits={"change_avatar": 1.0}, hold="read", goes={"look": 0.5}),
            "logout": _LOGOUT,
        },
    ),
    Routine(  # a salary or a refund; some wait for it and use it hours later
        name="incoming",
        kind="normal",
        weight=0.11,
        start={"money": 0.6, "awaited": 0.4},
        states={
            "money": State(emits={"receive_transfer": 1.0}, hold="read", goes={}, amount_shift=0.5),
            "awaited": State(emits={"receive_transfer": 1.0}, hold="hours", goes={"login": 1.0}, amount_shift=0.5),
            "login": State(emits={"login": 1.0}, hold="tap", goes={"look": 0.7, "pay": 0.3}),
            "look": State(emits=_LOOK, hold="read", goes={"look": 0.35, "pay": 0.45, "logout": 0.1}),
            "pay": State(emits=_PAYMENT, hold="read", goes={"logout": 0.2}),
            "logout": _LOGOUT,
        },
    ),
    Routine(  # a payment, if any, comes before the checks
        name="loan_shopping",
        kind="normal",
        weight=0.09,
        start={"login": 0.8, "look": 0.2},
        states={
            "login": State(emits={"login": 1.0}, hold="tap", goes={"look": 0.5, "pay": 0.2, "check": 0.3}),
            "look": State(emits=_LOOK, hold="read", goes={"look": 0.25, "pay": 0.15, "check": 0.6}),
            "pay": State(emits=_PAYMENT, hold="read", goes={"check": 0.7}),
            "check": State(
                emits=_CHECKS, hold="read", goes={"check": 0.35, "offers": 0.38, "pay": 0.01, "logout": 0.1}
            ),
            "offers": State(
                emits={"view_offers": 0.8, "chat_support": 0.2}, hold="read", goes={"check": 0.2, "logout": 0.2}
            ),
            "logout": _LOGOUT,
        },
    ),
    Routine(  # settings; a payment comes before them or hours after
        name="housekeeping",
        kind="normal",
        weight=0.08,
        start={"login": 0.75, "set": 0.25},
        states={
            "login": State(emits={"login": 1.0}, hold="tap", goes={"look": 0.25, "pay": 0.2, "set": 0.55}),
            "look": State(emits=_LOOK, hold="read", goes={"look": 0.3, "pay": 0.2, "set": 0.5}),
            "pay": State(emits=_PAYMENT, hold="read", goes={"set": 0.7}),
            "set": State(
                emits=_SETTINGS,
                hold="read",
                goes={"set": 0.3, "later": 0.15, "pay": 0.015, "after": 0.2, "logout": 0.13},
            ),
            "later": State(emits=_SETTINGS, hold="hours", goes={"paid_later": 1.0}),
            "paid_later": State(emits=_PAYMENT, hold="read", goes={"logout": 0.2}, p_new_payee=0.3),
            "after": State(emits=_LOOK, hold="read", goes={"after": 0.4, "logout": 0.2}),
            "logout": _LOGOUT,
        },
    ),
)

# Fraud that only a slightly larger amount and a new payee tell from a plain payment: no story, hardly any hope.
ATYPICAL = Routine(
    name="atypical",
    kind="atypical",
    weight=ATYPICAL_PER_FRAUD * len(STORIES),
    start=_PAY_START,
    states=_pay_states(
        State(emits=_PAYMENT, hold="read", goes=_PAY_GOES, is_beat=True, amount_shift=0.4, p_new_payee=0.3)
    ),
)
