"""What holds for every test: one thread, no network, the same examples each time, and where the shared data are."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import hypothesis
import pytest

# Before anything imports numpy, torch or ONNX Runtime; child processes inherit it. On a busy machine 41 tests took
# 129 s with threads and 7 s with one.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

# Servers and a small disk, made when a test first asks for the fixture `postgres`, `mlflow_server` or `disk`.
pytest_plugins = ("tests.postgres", "tests.mlflow_server", "tests.small_disk")

hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")

_SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
_LOOPBACK = ("127.0.0.1", "::1", "localhost", "")


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of public logs beside the repository; skip where it is absent."""
    if not _SHARED.is_dir():
        pytest.skip("needs the public logs in ../shared/data, which are not part of the repository")
    return _SHARED


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test reach this machine alone: a socket to anywhere else raises."""

    def refuse_outside(method: str) -> None:
        original = getattr(socket.socket, method)

        def checked(self: socket.socket, address: object) -> object:
            is_inet = self.family in (socket.AF_INET, socket.AF_INET6)
            if is_inet and not (isinstance(address, tuple) and address[0] in _LOOPBACK):
                raise RuntimeError(f"a test tried to reach {address!r}: tests have no network")
            return original(self, address)

        monkeypatch.setattr(socket.socket, method, checked)

    resolve = socket.getaddrinfo

    def resolve_here(host: str | bytes | None, *args: object, **kwargs: object) -> object:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and name not in _LOOPBACK and name != "0.0.0.0":
            raise RuntimeError(f"a test tried to look up {name!r}: tests have no network")
        return resolve(host, *args, **kwargs)  # type: ignore[arg-type]

    refuse_outside("connect")
    refuse_outside("connect_ex")
    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)


def pytest_runtest_setup() -> None:
    """Hold torch to one thread where a test file has imported it (its own default is the number of cores)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
