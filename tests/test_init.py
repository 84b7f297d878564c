"""`fraud init`: the right roles without edits on public logs, doubts said, leaks never proposed, refusals that help."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fraud.config import load_config
from fraud.errors import ConfigError, DataError, FraudError
from pipelines.cli import app
from pipelines.console import Screen
from pipelines.init import init_config
from pipelines.prepare import prepare_log
from pipelines.proposal.columns import words_of
from pipelines.simulate import simulate

SHARED_TOOLS = Path(__file__).resolve().parents[1].parent / "shared" / "tools"
Json = dict[str, Any]  # Any: JSON


def _init(events: Path | str, folder: Path) -> Json:
    return init_config(str(events), folder / "config.toml", overwrite=True, screen=Screen(as_json=True))


def _roles(events: Path | str, folder: Path) -> Json:
    return _init(events, folder)["roles"]


def _quarantined(folder: Path, *overrides: str) -> int:
    config = load_config(folder / "config.toml", overrides)
    report = prepare_log(config, folder / "prepared", overwrite=True, screen=Screen(as_json=True))
    assert report["rows_used"] > 0
    return report["quarantined"] + report["duplicates"]


def _read_by(roles: Json) -> set[str]:
    """Return every column that a model would read."""
    types = roles["log.type"]
    read = {roles.get("fields.amount", ""), *([types] if isinstance(types, str) else types)}
    for name in ("numeric", "categorical", "entity"):
        read |= set(roles.get(f"fields.{name}", []))
    return read - {""}


def _doubt(document: Json, setting: str) -> str:
    return " ".join(doubt["text"] for doubt in document["doubts"] if doubt["setting"] == setting)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "bank"
    simulate(out, users=150, days=40, seed=1, fraud_rate=0.05)
    return out


def test_the_simulators_log_needs_no_edit(simulated: Path, tmp_path: Path) -> None:
    roles = _roles(simulated / "events.parquet", tmp_path)
    assert roles["log.user"] == "user_id"
    assert roles["log.time"] == "ts"
    assert roles["log.type"] == "type"
    assert roles["log.event_id"] == "event_id"
    assert roles["fields.amount"] == "amount"
    assert roles["fields.categorical"] == ["channel"]
    assert roles["fields.entity"] == ["payee", "device"]
    assert {"login", "credit_score_check", "loan_check", "receive_transfer"} <= set(roles["fields.key_types"])
    assert 6 <= len(roles["fields.key_types"]) <= 8
    assert Path(roles["labels.path"]).name == "labels.parquet"  # never the oracle beside it
    assert roles["labels.key"] == ["event_id"]
    assert (roles["labels.column"], roles["labels.known_at"], roles["labels.level"]) == ("fraud", "known_at", "event")
    assert roles["decisions.on"] == ["transfer_out", "withdraw"]
    assert {"log.time_unit", "log.zone", "log.order", "log.session"}.isdisjoint(roles)
    assert _quarantined(tmp_path) == 0


def test_a_folder_with_the_log_its_labels_and_its_oracle_is_read_as_the_log(simulated: Path, tmp_path: Path) -> None:
    folder, file = (_roles(path, tmp_path) for path in (simulated, simulated / "events.parquet"))
    assert folder == file


def test_the_loan_log_needs_no_edit(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "bpi12_loan" / "events.parquet"
    roles = _roles(raw, tmp_path)
    assert roles["log.user"] == "case_id"
    assert roles["log.time"] == "timestamp"
    assert roles["log.type"] == ["activity", "lifecycle"]
    assert roles["log.order"] == "pos"
    assert _read_by(roles) <= {"activity", "lifecycle", "resource"}
    assert {"log.event_id", "log.zone", "log.time_unit", "fields.amount"}.isdisjoint(roles)
    pq.write_table(pq.read_table(raw).slice(100_000, 30_000), tmp_path / "some.parquet")
    assert _quarantined(tmp_path, "log.events=some.parquet") == 0


def test_the_card_log_needs_no_edit(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "fdh_cards" / "transactions.parquet"
    document = _init(raw, tmp_path)
    roles = document["roles"]
    assert roles["log.user"] == "CUSTOMER_ID"
    assert roles["log.time"] == "TX_DATETIME"
    assert roles["log.zone"] == "UTC"
    assert "no zone" in _doubt(document, "log.zone")
    assert roles["log.type"] == ""
    assert roles["log.event_id"] == "TRANSACTION_ID"
    assert roles["fields.entity"] == ["TERMINAL_ID"]
    assert roles["labels.column"] == "TX_FRAUD"
    assert _read_by(roles) == {"TX_AMOUNT", "TERMINAL_ID"}
    assert {"TX_FRAUD_SCENARIO", "TX_TIME_DAYS"} <= {left["column"] for left in document["left_out"]}
    pq.write_table(pq.read_table(raw).slice(700_000, 60_000), tmp_path / "some.parquet")
    assert _quarantined(tmp_path, "log.events=some.parquet") == 0


def test_the_wikipedia_log_needs_no_edit(shared_data: Path, tmp_path: Path) -> None:
    document = _init(shared_data / "wikipedia_bans" / "events.parquet", tmp_path)
    roles = document["roles"]
    assert (roles["log.user"], roles["log.time"], roles["log.time_unit"]) == ("user", "ts", "s")
    assert (roles["log.type"], roles["fields.entity"]) == ("", ["page"])
    assert "'page' could be the type" in _doubt(document, "log.type")
    assert roles["labels.column"] == "banned_after"
    assert _read_by(roles) == {"page"}
    assert _quarantined(tmp_path) == 0


def _bank_rows(n_rows: int, seed: int = 0) -> pa.Table:
    """Return a small log with everything in it: an id, an entity, a category, two leaks, a label, a free text."""
    rng = random.Random(seed)
    rows: list[Json] = []
    for n in range(n_rows):
        is_fraud = rng.random() < 0.05
        rows.append(
            {
                "tx_id": f"t{n}",
                "account_id": f"{rng.randrange(40):03d}",
                "created_at": f"2026-03-{1 + n * 27 // n_rows:02d}T{rng.randrange(24):02d}:{rng.randrange(60):02d}:07Z",
                "event_type": rng.choice(["login", "view_balance", "transfer_out", "card_payment"]),
                "amount_eur": f"{rng.gammavariate(2, 40):.2f}",
                "channel": rng.choice(["app", "web"]),
                "beneficiary_iban": f"DE{rng.randrange(200):05d}",
                "risk_score": f"{rng.random():.3f}",
                "resolution": "chargeback" if is_fraud else "none",
                "note": f"free text number {n} that nobody would ever want to see in a model",
                "is_fraud": "1" if is_fraud else "0",
            }
        )
    return pa.Table.from_pylist(rows)


def _write_csv(table: pa.Table, path: Path, delimiter: str = ",") -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def _write_json(table: pa.Table, path: Path) -> Path:
    numbers = {"amount_eur": float, "is_fraud": int}
    lines = [json.dumps(row | {name: kind(row[name]) for name, kind in numbers.items()}) for row in table.to_pylist()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


BANK_ROLES = {
    "log.user": "account_id",
    "log.time": "created_at",
    "log.type": "event_type",
    "log.event_id": "tx_id",
    "fields.amount": "amount_eur",
    "fields.categorical": ["channel"],
    "fields.entity": ["beneficiary_iban"],
    "labels.column": "is_fraud",
    "labels.level": "event",
}


@pytest.mark.parametrize(
    ("write", "delimiter"),
    [
        (lambda table, folder: _write_csv(table, folder / "log.csv"), None),
        (lambda table, folder: _write_csv(table, folder / "log.csv", ";"), ";"),
        (lambda table, folder: _write_csv(table, folder / "log.csv", "\t"), "\t"),
        (lambda table, folder: _write_csv(table, folder / "log.csv.gz", "|"), "|"),
        (lambda table, folder: _write_json(table, folder / "log.jsonl"), None),
    ],
    ids=["comma", "semicolon", "tab", "bar in gzip", "json lines"],
)
def test_every_format_gives_the_same_roles(
    write: Callable[[pa.Table, Path], Path], delimiter: str | None, tmp_path: Path
) -> None:
    roles = _roles(write(_bank_rows(400), tmp_path), tmp_path)
    assert {name: roles.get(name) for name in BANK_ROLES} == BANK_ROLES
    assert roles.get("log.delimiter") == delimiter
    assert _read_by(roles) == {"event_type", "amount_eur", "channel", "beneficiary_iban"}
    assert _quarantined(tmp_path) == 0


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_rows_and_columns_changes_no_role(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shuffled")
    table, rng = _bank_rows(150), random.Random(seed)
    names, rows = list(table.column_names), list(range(len(table)))
    rng.shuffle(names)
    rng.shuffle(rows)
    roles = _roles(_write_csv(table.select(names).take(pa.array(rows)), folder / "log.csv"), folder)
    assert {name: roles.get(name) for name in BANK_ROLES} == BANK_ROLES


LEAKS = ("fraud", "label", "scenario", "score", "resolution", "banned", "outcome", "is", "chargeback", "reported")


@settings(max_examples=25)
@given(
    leak=st.sampled_from(LEAKS),
    other=st.sampled_from(["kind", "amount", "device", "type", "user", "id", "count"]),
    join=st.sampled_from(["_", " ", "-", "."]),
    values=st.sampled_from([("1", "2", "3"), ("a", "b", "c"), ("0.5", "1.5", "2.5")]),
)
def test_what_may_tell_the_answer_is_never_a_field(
    leak: str, other: str, join: str, values: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("leak")
    name = f"{leak}{join}{other}"
    table = _bank_rows(120).append_column(name, pa.array([values[n % 3] for n in range(120)]))
    document = _init(_write_csv(table, folder / "log.csv"), folder)
    assert name not in _read_by(document["roles"])
    assert name in {left["column"] for left in document["left_out"]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TX_DATETIME", ("tx", "datetime")),
        ("isFraud", ("is", "fraud")),
        ("nameOrig", ("name", "orig")),
        ("case:concept:name", ("case", "concept", "name")),
        ("userID2", ("user", "id", "2")),
        (" user id ", ("user", "id")),
    ],
)
def test_a_name_is_taken_apart_into_words(name: str, words: tuple[str, ...]) -> None:
    assert words_of(name) == words


def test_times_without_a_zone_get_one_and_it_is_said_at_the_line(tmp_path: Path) -> None:
    table = _bank_rows(200)
    local = pa.array([time.as_py().removesuffix("Z").replace("T", " ") for time in table["created_at"]])
    log = _write_csv(table.set_column(2, "created_at", local), tmp_path / "log.csv")
    assert _roles(log, tmp_path)["log.zone"] == "UTC"
    lines = (tmp_path / "config.toml").read_text(encoding="utf-8").splitlines()
    at = lines.index('zone = "UTC"')
    assert lines[at - 1].startswith("# ? the times have no zone")
    assert _quarantined(tmp_path) == 0


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
def test_the_unit_of_numbers_is_the_one_that_makes_them_dates(unit: str, per_second: int, tmp_path: Path) -> None:
    table = _bank_rows(200)
    numbers = pa.array([(1_760_000_000 + 977 * n) * per_second for n in range(200)])
    _write_csv(table.set_column(2, "when", numbers), tmp_path / "log.csv")
    roles = _roles(tmp_path / "log.csv", tmp_path)
    assert (roles["log.time"], roles["log.time_unit"]) == ("when", unit)
    assert _quarantined(tmp_path) == 0


def test_a_log_with_an_order_but_no_clock_is_read_by_position(tmp_path: Path) -> None:
    n_seen: dict[str, int] = {}
    table = _bank_rows(200).drop_columns(["created_at"])
    steps: list[int] = []
    for user in table["account_id"].to_pylist():
        n_seen[user] = n_seen.get(user, -1) + 1
        steps.append(n_seen[user])
    document = _init(_write_csv(table.append_column("step", pa.array(steps)), tmp_path / "log.csv"), tmp_path)
    roles = document["roles"]
    assert (roles["log.time"], roles["log.position"], roles["split.by"]) == ("position", "step", "user")
    assert "no column is a time" in _doubt(document, "log.time")
    assert _quarantined(tmp_path) == 0


def test_a_label_that_is_the_same_for_all_events_of_a_user_is_of_the_user(tmp_path: Path) -> None:
    table = _bank_rows(600)
    labels = ["1" if int(user) % 3 == 0 else "0" for user in table["account_id"].to_pylist()]
    table = table.drop_columns(["is_fraud"]).append_column("fraudulent", pa.array(labels))
    document = _init(_write_csv(table, tmp_path / "log.csv"), tmp_path)
    assert (document["roles"]["labels.column"], document["roles"]["labels.level"]) == ("fraudulent", "user")
    assert _doubt(document, "labels.level")


def test_a_column_that_would_cost_rows_is_left_out_and_single_bad_rows_are_counted(tmp_path: Path) -> None:
    table = _bank_rows(400)
    broken = pa.array(["\x01" if n % 7 == 0 else value.as_py() for n, value in enumerate(table["channel"])])
    amounts = table["amount_eur"].to_pylist()
    amounts[5] = "1.234,00"
    table = table.set_column(5, "channel", broken).set_column(4, "amount_eur", pa.array(amounts))
    document = _init(_write_csv(table, tmp_path / "log.csv"), tmp_path)
    assert "channel" not in _read_by(document["roles"])
    assert "channel" in {left["column"] for left in document["left_out"]}
    assert "1 of the 400 rows" in _doubt(document, "fields.amount")
    assert _quarantined(tmp_path) == 1


def test_a_large_file_is_looked_at_not_read(tmp_path: Path) -> None:
    rows = "".join(f"u{n % 977},{1_700_000_000 + n},login\n" for n in range(400_000))
    (tmp_path / "log.csv").write_text("user,ts,type\n" + rows, encoding="utf-8")
    document = _init(tmp_path / "log.csv", tmp_path)
    assert 100_000 <= document["rows_looked_at"] < 400_000
    assert document["roles"]["log.user"] == "user"


REFUSALS = [
    ("ts,amount\n2026-01-01T00:00:00Z,1.5\n2026-01-01T00:00:01Z,2.5\n", "no column could be the user.*'ts', 'amount'"),
    ("user,amount\nu1,1.5\nu2,2.5\n", "no column could be the time.*RFC 3339"),
    ("user,date\nu1,20/11/2026\nu1,21/11/2026\n", "'date' cannot be read as a time, it holds '20/11/2026'"),
    ("user,ts\n", "no row"),
    ("user,ts,user\nu1,1,u1\n", "'user' stands twice"),
]


@pytest.mark.parametrize(("content", "said"), REFUSALS, ids=["user", "time", "day first", "no row", "twice"])
def test_a_refusal_says_what_was_missing(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        _init(tmp_path / "log.csv", tmp_path)
    assert not (tmp_path / "config.toml").exists()


def test_files_of_two_kinds_in_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "one.csv").write_text("user,ts\nu1,1760000000\n", encoding="utf-8")
    (folder / "two.csv").write_text("client,ts\nu1,1760000000\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"one\.csv; two\.csv"):
        _init(folder, tmp_path)


def test_a_configuration_that_exists_is_not_replaced(simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "config.toml"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists"):
        init_config(str(simulated / "events.parquet"), out, overwrite=False, screen=Screen(as_json=True))
    assert out.read_text(encoding="utf-8") == "mine"


def test_json_prints_the_roles_and_nothing_else_on_stdout(simulated: Path, tmp_path: Path) -> None:
    arguments = ["init", str(simulated / "events.parquet"), "-o", str(tmp_path / "c.toml"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["roles"]["log.user"] == "user_id"


def test_no_hostile_file_crashes_it(tmp_path: Path) -> None:
    tool = SHARED_TOOLS / "hostile" / "attack_http.py"
    if not tool.exists():
        pytest.skip("needs the maker of hostile files in ../shared/tools, which is not part of the repository")
    subprocess.run([sys.executable, str(tool), "--emit-files", str(tmp_path)], check=True, capture_output=True)
    written: dict[str, Json] = {}
    for line in (tmp_path / "index.jsonl").read_text(encoding="utf-8").splitlines():
        file = json.loads(line)["file"]
        alone = tmp_path / file.partition(".")[0] / file  # in a folder of its own: no file beside it is a label table
        alone.parent.mkdir()
        (tmp_path / file).rename(alone)
        try:
            written[file] = _roles(alone, tmp_path)
        except FraudError:
            continue
        load_config(tmp_path / "config.toml")
    assert len(written) > 50
    assert {roles["log.user"].strip().lower() for roles in written.values()} == {"user_id"}
    assert {roles["log.time"].strip().lower() for roles in written.values()} == {"ts"}
    leaks = {"label", "fraud_type", "score_v1", "resolution", "is_fraud"}
    assert not any(leaks & _read_by(roles) for roles in written.values())


def test_bad_rows_of_the_user_are_said_at_the_user(tmp_path: Path) -> None:
    rows = "".join(f"{'' if n == 7 else n % 9},{1_760_000_000 + n},login\n" for n in range(60))
    (tmp_path / "log.csv").write_text("user,ts,type\n" + rows, encoding="utf-8")
    document = _init(tmp_path / "log.csv", tmp_path)
    assert _doubt(document, "log.user") == "1 of the 60 rows looked at would be quarantined for 'user'"
    assert _quarantined(tmp_path) == 1


def test_the_oracle_is_never_taken_for_labels(simulated: Path, tmp_path: Path) -> None:
    for name in ("events.parquet", "oracle.parquet"):
        (tmp_path / name).write_bytes((simulated / name).read_bytes())
    assert not [name for name in _roles(tmp_path / "events.parquet", tmp_path) if name.startswith("labels.")]
