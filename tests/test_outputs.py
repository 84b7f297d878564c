"""Outputs: one writer at a time, and no file of somebody else is ever removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud.errors import ConfigError
from fraud.quarantine import Fault, Quarantine
from pipelines.files import check_output, only_one
from pipelines.prepare import write_quarantine


def _filled() -> Quarantine:
    quarantine = Quarantine()
    quarantine.add("log.csv", np.array([0]), column="ts", values=["x"], faults_N=np.array([Fault.BAD_TIME], np.int8))
    return quarantine


def test_a_second_run_on_the_same_output_is_refused_and_the_first_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with only_one(out), pytest.raises(ConfigError, match="another run is writing it"), only_one(out):
        pass
    assert list(tmp_path.iterdir()) == []
    with only_one(out):  # the right is free again
        pass


def test_the_lock_of_a_killed_run_holds_nobody_off(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from pipelines.files import check_output, only_one
with only_one(Path({str(tmp_path / "out")!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with only_one(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_is_no_output() -> None:
    with pytest.raises(ConfigError, match="expected the name of an output"), only_one(Path()):
        pass


@pytest.mark.parametrize("is_log", [True, False])
def test_a_log_or_a_strangers_file_under_the_name_of_the_quarantine_stays(tmp_path: Path, is_log: bool) -> None:
    path = tmp_path / "x.quarantine.parquet"
    pq.write_table(pa.table({"mine": [1]}), path)
    files = [path] if is_log else []
    write_quarantine(Quarantine(), path, files)
    with pytest.raises(ConfigError, match="expected another name"):
        write_quarantine(_filled(), path, files)
    assert pq.read_table(path).to_pydict() == {"mine": [1]}


def test_a_quarantine_of_an_earlier_run_is_replaced_and_removed_when_no_row_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "x.quarantine.parquet"
    write_quarantine(_filled(), path, [])
    write_quarantine(_filled(), path, [])
    assert pq.read_table(path).num_rows == 1
    write_quarantine(Quarantine(), path, [])
    assert not path.exists()


def test_resume_goes_on_with_an_unfinished_run_and_never_replaces_a_finished_output(tmp_path: Path) -> None:
    out, work = tmp_path / "notes.toml", tmp_path / ".notes.toml.work"
    out.write_text("somebody's own", encoding="utf-8")
    with pytest.raises(ConfigError, match="no unfinished run is there to resume"):
        check_output(out, work, overwrite=False, resume=True)
    work.mkdir()
    check_output(out, work, overwrite=False, resume=True)
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        check_output(out, work, overwrite=False, resume=False)
    check_output(out, work, overwrite=True, resume=False)
