"""Disks of a few megabytes, and filling them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[bool]:
    """Whether the directory is a disk of its own now; only root can mount one."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "kb-faults", str(directory)]
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def filled(directory: Path, *, but_bytes: int = 0) -> Iterator[None]:
    """No more than so many bytes are free on the directory's disk."""
    filler = directory / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while shutil.disk_usage(directory).free > but_bytes:
                        file.write(b"x" * size)
        yield
    finally:
        filler.unlink()
