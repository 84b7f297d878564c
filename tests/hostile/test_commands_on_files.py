"""The hostile files through the real `fraud score`: right exit code and counts, no bad row scored, no good row lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from tests.commands import ROOT, call_fraud, run_fraud
from tests.trained import Trained, trained_bundles

_EMITTER = ROOT.parent / "shared" / "tools" / "hostile" / "attack_http.py"
_CLEAN = tuple(f"e{n}" for n in range(12))  # the events of every small file; a bad or odd row has the id eX


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of a file. says: part of the error where it is refused, else the reason its row is put aside for."""

    lost: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    n_quarantined: int = 0
    says: str = ""
    is_refused: bool = False


def _refused(says: str) -> Fate:
    return Fate(is_refused=True, says=says)


def _aside(says: str, *lost: str) -> Fate:
    return Fate(n_quarantined=1, says=says, lost=lost)


_WHOLE, _EMPTY, _ONE_MORE = Fate(), Fate(lost=_CLEAN), Fate(added=("eX",))
_NOT_PARQUET = _refused("not a readable Parquet file")
SMALL_FILES: dict[str, Fate] = {
    # CSV
    "F001": _WHOLE, "F002": _refused("empty (0 bytes)"), "F003": _refused("the first line is blank"),
    "F004": _EMPTY, "F006": _WHOLE, "F007": _refused("UTF-16"), "F009": _aside("nul_byte"), "F010": _aside("nul_byte"),
    "F013": _WHOLE, "F014": _WHOLE, "F015": _aside("wrong_cell_count", "e11"), "F017": _aside("wrong_cell_count"),
    "F019": _aside("control_character"), "F022": _refused("is log.delimiter right?"),
    "F023": _refused("is log.delimiter right?"), "F025": _aside("wrong_cell_count"),
    "F026": _refused("no column 'user_id'"), "F028": _refused("no column 'ts'"),
    "F029": _refused("column 'user_id' stands twice"), "F030": _refused("no column 'user_id'"),
    "F031": _refused("no column 'user_id'"), "F034": _WHOLE, "F035": _WHOLE, "F037": _WHOLE, "F038": _WHOLE,
    "F039": _WHOLE, "F045": _ONE_MORE, "F046": _ONE_MORE, "F048": _aside("negative"), "F049": _aside("too_large"),
    "F050": _aside("bad_number"), "F051": _aside("bad_number"), "F052": _aside("bad_number"),
    "F054": _aside("bad_number"), "F055": _aside("bad_number"), "F058": _aside("empty"),
    "F062": _aside("no_time_unit"), "F063": _aside("no_zone"), "F064": _aside("time_out_of_range"),
    "F065": _aside("time_out_of_range"), "F066": _aside("time_out_of_range"), "F069": _aside("bad_time"),
    "F070": _aside("bad_time"), "F072": _aside("time_out_of_range"), "F075": _WHOLE, "F076": _WHOLE, "F077": _WHOLE,
    "F080": _ONE_MORE, "F082": _refused("gzip bytes"), "F084": _refused("PNG"), "F089": _refused("100006 columns"),
    # JSON Lines
    "F090": _WHOLE, "F092": _WHOLE, "F094": _aside("not_json", "e11"), "F095": _refused("a JSON array"),
    "F096": _refused("JSON over several lines"), "F098": _aside("not_finite"), "F100": _aside("lone_surrogate"),
    "F101": _aside("not_json"), "F103": _WHOLE, "F105": _aside("row_too_long"),
    # Parquet
    "F106": _WHOLE, "F107": _NOT_PARQUET, "F108": _NOT_PARQUET, "F109": _NOT_PARQUET, "F111": _NOT_PARQUET,
    "F113": _NOT_PARQUET, "F115": _NOT_PARQUET, "F116": _NOT_PARQUET, "F117": _NOT_PARQUET, "F118": _EMPTY,
    "F119": _refused("no column 'user_id'"), "F121": _aside("empty", "e0"), "F125": _WHOLE,
    "F126": _refused("column 'user_id' has type binary"), "F127": _WHOLE,
    "F128": _refused("set log.time_unit"), "F132": _WHOLE, "F133": _refused("times without a zone"),
    "F135": _WHOLE, "F136": _refused("column 'amount' has type string"), "F139": _WHOLE, "F141": _WHOLE,
    "F142": _refused("column 'user_id' stands twice"), "F144": _WHOLE,
}  # fmt: skip
LARGE_FILES = {"F086", "F087"}
# Other spellings of the clean log: the same events, so the same scores to the bit.
SAME_AS_CLEAN = (
    "F006", "F013", "F014", "F034", "F035", "F037", "F038", "F075", "F076", "F090", "F092", "F106", "F125", "F127",
    "F132", "F135", "F141",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the hostile files by id; skip where what writes them is absent."""
    if not _EMITTER.exists():
        pytest.skip("needs ../shared/tools/hostile, which is not part of the repository")
    folder = tmp_path_factory.mktemp("hostile")
    subprocess.run([sys.executable, str(_EMITTER), "--emit-files", str(folder)], check=True, capture_output=True)
    return {path.stem: path for path in folder.iterdir()}


def _index(files: dict[str, Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files["index"].read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, slots=True)
class Run:
    """How `fraud score --per-event --json` ended on one file."""

    exit_code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def scores(self) -> pa.Table:
        return pq.read_table(self.out)

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        path = self.out.with_name(f"{self.out.stem}.quarantine.parquet")
        return pq.read_table(path).to_pylist() if path.exists() else []


def _score(trained: Trained, file: Path, folder: Path) -> Run:
    out = folder / f"{file.stem}.parquet"
    return Run(*call_fraud("score", trained.plain, file, "-o", out, "--json", "--per-event"), out)


def test_every_hostile_file_is_tried_and_gets_what_it_deserves(files: dict[str, Path]) -> None:
    index = {case["id"]: case for case in _index(files)}
    assert index.keys() == SMALL_FILES.keys() | LARGE_FILES
    for name, fate in SMALL_FILES.items():
        became = "reject_file" if fate.is_refused else "quarantine" if fate.n_quarantined else "accept"
        assert became in index[name]["expect"].split("|"), (name, index[name])


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_hostile_file_is_scored_put_aside_or_refused(
    trained: Trained, files: dict[str, Path], name: str, tmp_path: Path
) -> None:
    fate = SMALL_FILES[name]
    (case,) = [case for case in _index(files) if case["id"] == name]
    run = _score(trained, files[name], tmp_path)
    assert "Traceback" not in run.stderr
    if fate.is_refused:
        assert (run.exit_code, run.stdout) == (2, "")
        assert fate.says in run.stderr
        assert str(files[name]) in run.stderr
        assert list(tmp_path.iterdir()) == []
        if "field" in case:
            assert case["field"] in run.stderr
        return
    assert run.exit_code == 0, run.stderr
    expected = {*_CLEAN, *fate.added} - set(fate.lost)
    assert sorted(run.scores["event_id"].to_pylist()) == sorted(expected)
    document = json.loads(run.stdout)
    assert document["rows_in"] == document["rows_used"] + document["duplicates"] + document["quarantined"]
    assert (document["rows_used"], document["duplicates"]) == (len(expected), 0)
    assert [row["reason"] for row in run.quarantine] == [fate.says] * fate.n_quarantined
    for row in run.quarantine:
        assert row["file"] == str(files[name])
        assert row["row"] == (0 if name == "F121" else document["rows_in"] - 1)
        assert row["column"] == case.get("field", row["column"])
        assert row["text"]
    if not expected:
        assert "the log holds no row" in run.stderr


@pytest.mark.parametrize("name", SAME_AS_CLEAN)
def test_the_same_events_in_another_spelling_get_the_same_scores(
    trained: Trained, files: dict[str, Path], name: str, tmp_path: Path
) -> None:
    clean, other = (_score(trained, files[one], tmp_path).scores for one in ("F001", name))
    assert other.equals(clean)


def test_ids_are_text_as_written(trained: Trained, files: dict[str, Path], tmp_path: Path) -> None:
    users = set(_score(trained, files["F039"], tmp_path).scores["user_id"].to_pylist())
    table = pacsv.read_csv(files["F039"], convert_options=pacsv.ConvertOptions(column_types={"user_id": pa.string()}))
    assert users == set(table["user_id"].to_pylist())
    assert any(user.startswith("0") for user in users)


def test_unknown_types_are_counted_and_said(trained: Trained, files: dict[str, Path], tmp_path: Path) -> None:
    clean, odd, alike = (
        json.loads(_score(trained, files[name], tmp_path).stdout)["unknown_types"] for name in ("F001", "F045", "F046")
    )
    assert odd == alike == clean + 1
    assert "never seen" in _score(trained, files["F045"], tmp_path / "again").stderr


def test_a_spreadsheet_runs_no_cell_of_a_csv_output(trained: Trained, files: dict[str, Path], tmp_path: Path) -> None:
    done = run_fraud("score", trained.plain, files["F080"], "-o", tmp_path / "scores.csv", "--per-event")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "scores.csv").read_text(encoding="utf-8")
    rows = pacsv.read_csv(tmp_path / "scores.csv").to_pylist()
    (row,) = [row for row in rows if row["event_id"] == "eX"]
    (source,) = [row for row in pacsv.read_csv(files["F080"]).to_pylist() if row["event_id"] == "eX"]
    assert source["user_id"][0] in "=+-@"
    assert row["user_id"] == f"'{source['user_id']}"
    assert not [cell for line in text.splitlines() for cell in line.split(",") if cell.strip('"')[:1] in set("=+-@")]


@pytest.mark.parametrize(("name", "code"), [("F009", 0), ("F116", 2), ("F101", 0)])
def test_the_command_in_its_own_process_ends_the_same(
    trained: Trained, files: dict[str, Path], name: str, code: int, tmp_path: Path
) -> None:
    done = run_fraud("score", trained.plain, files[name], "-o", tmp_path / "scores.parquet", "--json")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert (done.stdout == "") == (code != 0)
    assert (tmp_path / "scores.parquet").exists() == (code == 0)


_MEASURED = """
import pathlib, sys, time
from pipelines.console import Screen
from pipelines.score import score_file
started = time.process_time()
score_file(pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), config=None,
           per_event=True, overwrite=False, resume=False, screen=Screen(as_json=True))
status = pathlib.Path("/proc/self/status").read_text()
peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
print(time.process_time() - started, peak_kib / 1024)
"""


def _measured(bundle: Path, file: Path, out: Path) -> tuple[float, float]:
    """Return the CPU seconds and the peak memory in MiB of scoring a file, in a process that does nothing else."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to tell the peak memory of a process")
    done = run_fraud(bundle, file, out, code=_MEASURED)
    assert done.returncode == 0, done.stderr
    cpu_s, peak_mib = (float(word) for word in done.stdout.split())
    return cpu_s, peak_mib


def test_one_user_with_a_million_events_takes_under_a_gigabyte(
    trained: Trained, files: dict[str, Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    cpu_s, peak_mib = _measured(trained.plain, files["F086"], tmp_path / "scores.parquet")
    record_property("cpu_s", cpu_s)
    record_property("peak_mib", peak_mib)
    sys.stdout.write(f"a million events of one user: {cpu_s:.1f} s of CPU, {peak_mib:.0f} MiB\n")
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert len(scores) == 1_000_000
    assert len(set(scores["user_id"].unique().to_pylist())) == 1
    assert scores["score"].null_count == 0
    assert peak_mib < 1024


def test_a_hundred_thousand_users_with_one_event_each_are_all_scored(
    trained: Trained, files: dict[str, Path], tmp_path: Path
) -> None:
    run = _score(trained, files["F087"], tmp_path)
    assert run.exit_code == 0, run.stderr
    assert len(run.scores["user_id"].unique()) == len(run.scores) == 100_000
