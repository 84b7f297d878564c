"""`fraud simulate`: a bank's log with planted fraud, what the bank knows of it, a config, and the best possible scores.

The bank itself is `bank.log`, its ceiling `bank.oracle`; here their arrays become four files.
"""

import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud.errors import ConfigError
from pipelines.bank.chain import IS_DECISION_V, Chain, bank_chain
from pipelines.bank.labels import Reports, observed_reports
from pipelines.bank.log import BankLog, simulate_bank
from pipelines.bank.routines import KINDS
from pipelines.bank.tables import bank_tables
from pipelines.files import written_whole

FILES = ("events.parquet", "labels.parquet", "oracle.parquet", "config.toml")
MAX_FRAUD_RATE = 0.1  # above it, decoys that outnumber the fraud leave too few normal sessions

_CONFIG = """\
# fraud train config.toml -o bundle
#
# A simulated bank: {n_events} events of {n_users} users; {n_fraud} of {n_decisions} decision events are fraud. Made by
#   fraud simulate -o DIR --users {n_users} --days {days} --seed {seed} --fraud-rate {fraud_rate}
# oracle.parquet has the best possible score of each decision event: the exact probability of fraud given the user's
# past. It also knows the user's lasting habits, so it is an upper bound. No command trains on it.

[log]
events = "events.parquet"
user = "user_id"
time = "ts"
type = "type"
event_id = "event_id"                 # unique: repeated rows are found, labels are joined by it

[fields]
amount = "amount"                     # transfers, bills and withdrawals; none elsewhere
categorical = ["channel"]
entity = ["payee", "device"]          # first seen, and the fraud known of them
# A model is told the time since the last event of each of these.
key_types = [
  "login", "credit_score_check", "loan_check", "receive_transfer",
  "change_device", "add_payee", "change_password", "change_avatar",
]

[sessions]
gap = "30m"                           # idle for longer: a new session
scope = "user"                        # a fraud's first step may lie in an earlier session
max_events = 64

[labels]
path = "labels.parquet"               # reported fraud only: some is missed, a little is false, all of it comes late
key = ["event_id"]
column = "fraud"
level = "event"
known_at = "known_at"
delay = "{delay_days}d"                         # no report by then: taken as honest

[decisions]
on = ["transfer_out", "withdraw"]

[split]
by = "time"
fractions = [0.55, 0.3, 0.15]        # half of the validation period is too recent to be settled

[model]
name = "lstm"

[training]
negative_rate = 0.5                   # half of the honest windows are enough; the logit is corrected for it

[policy]
alert_budget = 0.01                   # share of the decision events that somebody can look at
# costs = {{ review = 3.0 }}            # or: what one look costs, in the unit of amount

[tracking]
uri = "sqlite:///mlflow.db"
"""


def simulate(
    out_dir: Path,
    *,
    users: int = 8000,
    days: int = 90,
    seed: int = 0,
    fraud_rate: float = 0.01,
    overwrite: bool = False,
) -> dict[str, int | float | dict[str, int]]:
    """Return the counts of the log written to `out_dir` (FILES): events, users, decisions, frauds, reports, kinds.

    The same arguments give the same bytes. fraud_rate: expected share of the decision events that are fraud. The files
    get their names only when all are written. Raises ConfigError for an argument out of range, an output that exists.
    """
    _check(users=users, days=days, seed=seed, fraud_rate=fraud_rate)
    _check_output(out_dir, overwrite=overwrite)
    chain = bank_chain(fraud_rate)
    log = simulate_bank(chain, users=users, days=days, seed=seed)
    reports = observed_reports(log, seed=seed)
    summary = _summary(chain, log, reports)
    # 63 % of the reports come within 7 days and 91 % within 13: what comes later makes every score too low.
    delay_days = max(1, min(14, int(0.15 * days)))
    config = _CONFIG.format(**summary, days=days, seed=seed, fraud_rate=fraud_rate, delay_days=delay_days)
    tables = bank_tables(chain, log, reports)
    _write_whole(out_dir, {f"{name}.parquet": table for name, table in tables.items()}, config)
    return summary


def _check(*, users: int, days: int, seed: int, fraud_rate: float) -> None:
    """Raise ConfigError that names the argument, its value and what was expected."""
    for name, value, low, high in (
        ("users", users, 10, 10_000_000),
        ("days", days, 7, 36_500),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} = {value!r}: expected a whole number from {low} to {high}")
    if not (math.isfinite(fraud_rate) and 0.0 < fraud_rate <= MAX_FRAUD_RATE):
        raise ConfigError(
            f"fraud_rate = {fraud_rate!r}: expected a share of the decision events above 0 and at most {MAX_FRAUD_RATE}"
        )


def _check_output(out_dir: Path, *, overwrite: bool) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"{out_dir}: is a file; expected a folder to write {', '.join(FILES)} into")
    if overwrite or not out_dir.exists():
        return
    # What an interrupted run left is not in the way.
    present = sorted(path.name for path in out_dir.iterdir() if not path.name.endswith(".partial"))
    if present:
        raise ConfigError(
            f"{out_dir}: exists and holds {present[0]!r}; expected an empty or new folder, or --overwrite"
        )


def _write_whole(out_dir: Path, tables: dict[str, pa.Table], config: str) -> None:
    """Write every file aside, then give each its name; the config last, so that no half of a log can be trained on."""
    with ExitStack() as stack:  # unwinds in reverse: what is entered first is named last
        asides = {name: stack.enter_context(written_whole(out_dir / name)) for name in ("config.toml", *tables)}
        asides["config.toml"].write_text(config, encoding="utf-8")
        for name, table in tables.items():
            pq.write_table(table, asides[name], compression="zstd")
        (out_dir / "config.toml").unlink(missing_ok=True)


def _summary(chain: Chain, log: BankLog, reports: Reports) -> dict[str, int | float | dict[str, int]]:
    is_decision_N = IS_DECISION_V[log.type_N]
    n_by_kind = np.bincount(chain.kind_K[log.state_N[is_decision_N]], minlength=len(KINDS))
    return {
        "n_events": log.user_N.size,
        "n_users": int(np.unique(log.user_N).size),
        "n_decisions": int(is_decision_N.sum()),
        "n_fraud": int(log.is_fraud_N.sum()),
        "n_labels": reports.event_L.size,
        "kinds": {kind: int(n) for kind, n in zip(KINDS, n_by_kind, strict=True)},
    }
