"""Processes of the product that start in a tenth of the time: forks of one that has imported all.

`python -m tests.faults.nursery` reads an order per line from its input, forks, and writes the
child's process id. The child is what `kb worker`, `kb beat` or `kb serve` become, in a session of
its own, and ends when the nursery does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import time_machine

_IMPORTED = (
    "celery.app.base",
    "celery.beat",
    "celery.bin.beat",
    "celery.bin.worker",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.worker.components",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "alembic.command",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "kb.adapters.celery_queue",
    "kb.adapters.local_embedder",
    "kb.adapters.qdrant_server",
    "kb.cli.main",
    "kb.cli.serve",
    "kb.crew",
    "kb.maintenance",
    "kb.sweeper",
    "kb.wiring",
    "tests.faults.places",
    "uvicorn",
)
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass
class Child:
    """A process that the nursery started."""

    pid: int
    log: Path

    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def children(self) -> list[int]:
        """Its own child processes, as the kernel lists them."""
        try:
            listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [int(child) for child in listed.split()]

    def kill(self) -> None:
        """kill -9 of the process and its children; returns when it is gone."""
        for end in (os.killpg, os.kill):  # one that has just been born leads no group yet
            with suppress(ProcessLookupError):
                end(self.pid, signal.SIGKILL)
        self.wait(10)

    def wait(self, limit_s: float) -> None:
        """Return when it is gone."""
        ends = time.monotonic() + limit_s
        while self.alive():
            assert time.monotonic() < ends, f"process {self.pid} did not end within {limit_s} s"
            time.sleep(0.005)


class Nursery:
    """The client's side.

    Args:
        trap: the file of `places.Trap`.
    """

    def __init__(self, trap: Path) -> None:
        tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._trap = trap
        self._process = subprocess.Popen(
            [*tied, sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        clock: Path | None = None,
    ) -> Child:
        """Fork a `worker`, a `beat` or a `serve`.

        Args:
            clock: a file that says how far the process's clock is off; see `follow_clock`.
        """
        order = {
            "program": program,
            "arguments": list(arguments),
            "environment": dict(environment),
            "clock": str(clock) if clock else None,
            "log": str(log),
            "trap": str(self._trap),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Child(int(self._process.stdout.readline()), log)

    def close(self) -> None:
        """End the nursery; what it started ends with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _serve() -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes the dead away
    for line in sys.stdin.buffer:
        order = json.loads(line)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(order, parent)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _become(order: dict[str, Any], parent: int) -> NoReturn:
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    if order["clock"] is not None:
        follow_clock(Path(order["clock"]))
    sys.exit(_run(order["program"], order["arguments"], Path(order["trap"])))


def follow_clock(file: Path) -> None:
    """From now on this process's clock is off by the seconds in the file, which may change.

    Waits and `time.monotonic` are as they were: they do not depend on what a machine's clock says.
    """

    def away() -> datetime:
        real = began + time.monotonic() - was
        return datetime.fromtimestamp(real + float(file.read_text()), UTC)

    began, was = time.time(), time.monotonic()
    coordinates = time_machine.travel(away()).start()

    def follow() -> None:
        known = file.read_text()
        while True:
            time.sleep(0.02)
            if file.read_text() != known:
                known = file.read_text()
                coordinates.move_to(away())

    threading.Thread(target=follow, daemon=True).start()


def _run(program: str, arguments: list[str], trap: Path) -> int:
    from tests.faults.places import watch

    watch(trap)
    if program == "serve":
        from kb.cli.main import main as serve

        sys.argv = ["kb", "serve", *arguments]
        return int(serve() or 0)
    from workers.__main__ import main

    return main([program, *arguments])


if __name__ == "__main__":
    _serve()
