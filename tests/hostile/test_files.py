"""Every hostile log file gets what it deserves: accepted, refused by row, or refused as a whole and by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fraud.errors import DataError
from tests.raw_logs import config_of, read, rows_of

ATTACK = Path(__file__).resolve().parents[2].parent / "shared" / "tools" / "hostile" / "attack_http.py"
Case = dict[str, Any]

CLEAN = {"csv": "F001.csv", "jsonl": "F090.jsonl", "parquet": "F106.parquet"}
# How many rows are used where it is not "all rows of the clean file": bad rows stand beside them, or replace them.
USED = {"F004": 0, "F015": 11, "F086": 1_000_000, "F087": 100_000, "F094": 11, "F118": 0, "F121": 11}
ADDED_GOOD_ROW = {"F045", "F046", "F080"}


def cases() -> list[Case]:
    """Return the cases that are files; empty where the generator is absent."""
    if not ATTACK.is_file():
        return []
    every = map(json.loads, ATTACK.with_name("bad_inputs.jsonl").read_text(encoding="utf-8").splitlines())
    return [case for case in every if case["via"] == "file"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the files."""
    if not ATTACK.is_file():
        pytest.skip(f"needs the generator of hostile files, which is not part of the repository: {ATTACK}")
    folder = tmp_path_factory.mktemp("hostile")
    subprocess.run([sys.executable, str(ATTACK), "--emit-files", str(folder)], check=True, capture_output=True)
    return folder


def test_every_hostile_file_is_a_case(files: Path) -> None:
    index = [json.loads(line) for line in (files / "index.jsonl").read_text().splitlines()]
    assert [case["id"] for case in index] == [case["id"] for case in cases()]
    assert len(index) >= 87


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case['id']} {case['name']}") for case in cases()])
def test_a_hostile_file_gets_what_it_deserves(case: Case, files: Path) -> None:
    path = files / f"{case['id']}.{case['ext']}"
    deserved = case["expect"].split("|")
    error, got = None, None
    try:
        got = read(path, config_of())
    except DataError as refused:
        error = str(refused)
    if got is None:
        assert "reject_file" in deserved
        assert str(error).startswith(f"{path}: ")
        assert "field" not in case or repr(case["field"]) in str(error)
        return
    n_refused = len(got.quarantine)
    assert ("quarantine" if n_refused else "accept") in deserved
    assert got.quarantine.n_rows_read == len(got.events) + got.n_duplicates + n_refused
    n_good = USED.get(case["id"], 12 + (case["id"] in ADDED_GOOD_ROW))
    assert len(got.events) == n_good
    assert got.n_duplicates == 0
    if n_refused and "field" in case:
        assert got.quarantine.table()["column"].to_pylist() == [case["field"]]


HARMLESS = {
    "csv": ["F006", "F013", "F014", "F034", "F035", "F037", "F038", "F075", "F076", "F077"],
    "jsonl": ["F092"],
    "parquet": ["F125", "F132", "F135", "F139", "F141", "F144"],
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_files_read_as_the_clean_one(kind: str, files: Path) -> None:
    clean = rows_of(read(files / CLEAN[kind], config_of()).events)
    for name in HARMLESS[kind]:
        assert rows_of(read(files / f"{name}.{kind}", config_of()).events) == clean, name
