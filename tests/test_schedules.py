"""The schedules to copy: every command in them exists, cron tells what went wrong, systemd takes the units."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import ROOT, call_fraud

_CRONTAB = ROOT / "deploy" / "crontab"
_UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
_SCRIPT = ROOT / "deploy" / "jobs.sh"
_COMPOSE = ROOT / "docker-compose.yml"
_DOCS = [ROOT / "docs" / "scheduling.md", ROOT / "docs" / "containers.md"]
_FIELD = re.compile(r"(\*|\d+(-\d+)?)(/\d+)?(,\d+)*")
_PROGRAM = "/opt/fraud/bin/fraud"


class CronLine(NamedTuple):
    """One line that cron runs."""

    fields: list[str]
    command: str


def _cron_lines(text: str) -> list[CronLine]:
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s*[\d*]\S*(\s+\S+){5}", line)]
    parts = [line.split(maxsplit=5) for line in lines]
    return [CronLine(part[:5], part[5]) for part in parts]


def _fraud_commands(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `fraud` command that a file runs or prints."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        line = line.split(" #", 1)[0]
        if path.suffix == ".yml" and (found := re.search(r"^  command: \[(.*)\]", line)):  # of the service's image
            yield [word.strip().strip('"') for word in found[1].split(",")]
        elif not line.lstrip().startswith("#") and (path.suffix != ".md" or line.startswith("    ")):
            for found in re.finditer(r"(?:^|[ =/])fraud (?=[a-z])([^>|&`]*)", line):
                yield shlex.split(found[1].split(";")[0].removesuffix('"$@"'))


def _trouble(arguments: list[str]) -> str | None:
    """Return what is wrong with a command: no such one, or an option that it does not take; None where it is right."""
    asked = call_fraud(*arguments, "--help")  # looked at after the options, before anything runs
    return (
        None if asked.exit_code == 0 and "Usage:" in asked.stdout else f"fraud {shlex.join(arguments)}: {asked.stderr}"
    )


@pytest.mark.parametrize("path", [_CRONTAB, *_UNITS, _SCRIPT, _COMPOSE, _DOCS[0]], ids=lambda path: path.name)
def test_every_command_of_a_schedule_exists_with_its_options(path: Path) -> None:
    commands = list(_fraud_commands(path))
    assert commands or path.suffix == ".timer" or "@" in path.name
    assert [trouble for arguments in commands if (trouble := _trouble(arguments))] == []


@pytest.mark.parametrize("path", [_COMPOSE, *_DOCS], ids=lambda path: path.name)
def test_every_service_that_is_run_by_hand_is_there(path: Path) -> None:
    services = re.findall(
        r"^  ([a-z0-9-]+):$", _COMPOSE.read_text(encoding="utf-8").split("\nservices:\n")[1], re.MULTILINE
    )
    jobs = re.findall(r"^([a-z-]+)\)", _SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    told = re.findall(r"docker compose run --rm (?:-T )?([a-z-]+)(?: ([a-z]+))?", path.read_text(encoding="utf-8"))
    assert told
    for service, argument in told:
        assert service in services
        assert service in jobs
        if service == "registry":
            assert _trouble([argument]) is None


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert _trouble(["train", "config.toml", "-o", "bundle"]) is None
    assert "No such command" in str(_trouble(["trained", "config.toml"]))
    assert "--bogus" in str(_trouble(["train", "config.toml", "--bogus"]))


@pytest.mark.parametrize("path", [_CRONTAB, _DOCS[0]], ids=lambda path: path.name)
def test_cron_takes_the_lines(path: Path) -> None:
    lines = _cron_lines(path.read_text(encoding="utf-8"))
    assert len(lines) >= 3
    for line in lines:
        assert all(_FIELD.fullmatch(field) for field in line.fields), line
        assert "%" not in line.command  # which cron would take for the end of the line


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """Return a folder of programs that write down what they are called with, and end as their environment says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("fraud", "journalctl", "mail", "hostname"):
        program = folder / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\n[ "{name}" = mail ] && cat >> "$CALLS"\n'
            f'echo "{name} says"\nsleep "${{LASTS:-0}}"\nexit "${{CODE:-0}}"\n',
            encoding="utf-8",
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def _environment(stubs: Path, **more: str) -> dict[str, str]:
    calls = {"CALLS": str(stubs.parent / "calls"), "FOLDER": str(stubs.parent), "MAILTO": "team@bank.example"}
    return {"PATH": f"{stubs}:{os.environ['PATH']}", **calls, **more}


def _run(command: str, environment: dict[str, str]) -> str:
    """Return what a line prints: what cron would mail."""
    done = subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _cron_command(name: str) -> str:
    (found,) = [line for line in _cron_lines(_CRONTAB.read_text(encoding="utf-8")) if f"fraud {name} " in line.command]
    return found.command


@pytest.mark.parametrize("name", ["monitor", "labels"])
def test_cron_mails_an_alarm_and_is_silent_without_one(stubs: Path, name: str) -> None:
    assert _run(_cron_command(name), _environment(stubs)) == ""
    assert _run(_cron_command(name), _environment(stubs, CODE="4")) == "fraud says\n"


def test_cron_mails_every_verdict_of_a_retraining(stubs: Path) -> None:
    for code in ("0", "3"):
        assert _run(_cron_command("retrain"), _environment(stubs, CODE=code)) == "fraud says\n"


def test_cron_begins_a_publisher_where_none_runs(stubs: Path) -> None:
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed")
    command, environment = _cron_command("publish"), _environment(stubs, LASTS="30")
    calls = Path(environment["CALLS"])
    with subprocess.Popen(["/bin/sh", "-c", command], env=environment, start_new_session=True) as first:
        until = time.monotonic() + 20
        while not calls.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        assert _run(command, environment) == ""
        assert len(calls.read_text(encoding="utf-8").splitlines()) == 1
        os.killpg(first.pid, 9)
    until = time.monotonic() + 20
    while len(calls.read_text(encoding="utf-8").splitlines()) < 2:  # the lock goes when the last of the killed has gone
        assert time.monotonic() < until
        _run(command, environment | {"LASTS": "0"})


def test_a_unit_that_fails_is_mailed(stubs: Path) -> None:
    for unit in ("fraud-retrain.service", "fraud-monitor.service"):
        assert "OnFailure=fraud-mail@%n.service" in (ROOT / "deploy" / "systemd" / unit).read_text(encoding="utf-8")
    text = (ROOT / "deploy" / "systemd" / "fraud-mail@.service").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    command = shlex.split(line.replace("$$", "$").replace("%i", "fraud-monitor.service"))
    environment = _environment(stubs)
    subprocess.run(command, env=environment, check=True, timeout=20)
    calls = Path(environment["CALLS"]).read_text(encoding="utf-8").splitlines()
    # Both ends of a pipe write there, in whatever order; what was mailed comes last.
    assert any(call.startswith("journalctl --unit fraud-monitor.service") for call in calls)
    assert "mail -s fraud-monitor.service on hostname says team@bank.example" in calls
    assert calls[-1] == "journalctl says"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in _UNITS:
        # Whether the program is there is the reader's affair; an instance stands for a template.
        text = unit.read_text(encoding="utf-8").replace(_PROGRAM, "/bin/true")
        (tmp_path / unit.name.replace("@", "@x")).write_text(text, encoding="utf-8")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    names = [str(tmp_path / unit.name.replace("@", "@x")) for unit in _UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, check=False, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "fraud" in line]
    assert (done.returncode, ours) == (0, [])


def test_a_timer_starts_a_unit_that_is_there() -> None:
    timers = [unit for unit in _UNITS if unit.suffix == ".timer"]
    assert len(timers) == 2
    for timer in timers:
        assert timer.with_suffix(".service") in _UNITS
        assert "OnCalendar=" in timer.read_text(encoding="utf-8")
