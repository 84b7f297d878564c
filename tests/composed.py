"""docker-compose.yml under a project's name of its own: by a Docker engine, or by Podman with stand-in images.

../shared/tools/containers is for machines that have neither the one nor a registry of images. Where both ways are
missing, a test that needs a stack is skipped; where CI or FRAUD_CI is set, it fails.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_TOOL = ROOT.parent / "shared" / "tools" / "containers"
_BUILD = ROOT / "build"
_LOG = _BUILD / "containers.log"
_PROJECT = "fraudtest"
_SERVICES = ("postgres", "mlflow", "publish", "service-1", "service-2")


class Stack:
    """The composed containers under a project's name of their own, on free ports, and what was done with them."""

    def __init__(self) -> None:
        """Find the engine; skip the test where there is none."""
        if _answers(("docker", "compose", "ls")):
            self._engine, self._compose = ("docker",), ("docker", "compose")
        elif _TOOL.exists() and os.geteuid() == 0:
            self._engine, self._compose = (str(_TOOL), "run", "podman"), (str(_TOOL), "compose")
        else:
            text = "neither a Docker engine nor, as root, ../shared/tools/containers"
            if os.environ.get("CI") or os.environ.get("FRAUD_CI"):
                pytest.fail(text)
            pytest.skip(text)
        self.is_podman = self._engine != ("docker",)
        self.ports = _free_ports(3)
        self._started = time.monotonic()
        _LOG.parent.mkdir(exist_ok=True)
        _LOG.write_text("")

    def compose(self, *arguments: str, timeout_s: float = 300, ends: Collection[int] = (0,)) -> str:
        """Return what a command of Compose wrote to stdout. ends: the exit codes that are right."""
        self.say(f"$ docker compose {' '.join(arguments)[:100].splitlines()[0]}")
        return self._run((*self._compose, "-p", _PROJECT, *arguments), timeout_s=timeout_s, ends=ends)

    def run(self, service: str, *arguments: str, entrypoint: str | None = None, ends: Collection[int] = (0,)) -> str:
        """Return what a service of a profile wrote to stdout, run once."""
        options = ("--rm", "-T", *(("--entrypoint", entrypoint) if entrypoint else ()))
        # Docker takes the profile from the service that is named, Podman does not.
        return self.compose("--profile", service, "run", *options, service, *arguments, ends=ends)

    def engine(self, *arguments: str) -> str:
        """Return what a command of the engine wrote to stdout."""
        return self._run((*self._engine, *arguments), timeout_s=60)

    def container(self, service: str) -> str:
        """Return the id of the container of a service."""
        project, name = f"label=com.docker.compose.project={_PROJECT}", f"label=com.docker.compose.service={service}"
        return self.engine("ps", "-aq", "--filter", project, "--filter", name).split()[0]

    def keep_logs(self) -> None:
        """Write what each service logged beside the log of what was done."""
        for service in _SERVICES:
            with (_BUILD / f"containers-{service}.log").open("w") as log:
                command = (*self._compose, "-p", _PROJECT, "logs", service)
                subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False, timeout=60)

    def say(self, text: str) -> None:
        """Add a line to the log."""
        with _LOG.open("a") as log:
            log.write(f"{time.monotonic() - self._started:6.1f} s  {text}\n")

    def prepare(self) -> None:
        """Install the stand-in engine and the base images, where they are what this runs on."""
        if self.is_podman:
            self._run((str(_TOOL), "setup"), timeout_s=600)
            if shutil.which("iptables") is None:  # what Podman's networks are made with, and only recommends
                install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends iptables"
                self._run(("sh", "-c", install), timeout_s=300)
            files = (str(ROOT / "Dockerfile"), str(ROOT / "docker-compose.yml"))
            self._run((str(_TOOL), "standins", *files), timeout_s=600)

    def _run(self, command: Sequence[str], *, timeout_s: float, ends: Collection[int] = (0,)) -> str:
        ports = dict(zip(("FRAUD_PORT_1", "FRAUD_PORT_2", "MLFLOW_PORT"), map(str, self.ports), strict=True))
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | ports, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode in ends, f"{command}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout


def _answers(command: Sequence[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def _free_ports(n: int) -> list[int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [server.getsockname()[1] for server in listening]
    for server in listening:
        server.close()
    return ports
