"""A small disk to fill: the fixture `disk`, where a folder of memory may be mounted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder where a small disk is mounted; skip where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={PAGE}", "tmpfs", str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs a small disk to fill, and there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"needs a small disk to fill, and may not mount one here ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def sized(disk: Path, n_bytes: int) -> None:
    """Give a small disk another size, not below what it holds."""
    subprocess.run(["mount", "-o", f"remount,size={n_bytes}", str(disk)], check=True, capture_output=True)
