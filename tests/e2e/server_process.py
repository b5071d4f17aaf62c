"""A real `kb serve` in a process of its own: started, asked, killed, started again."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import httpx

from tests.models import model_cache

KEY = "workspace-key-of-the-tests"


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass
class ServerProcess:
    """`kb serve` on one data directory and port; its log is appended to `log`.

    Args:
        settings: environment variables beside those that a test always needs.
    """

    data_dir: Path
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = self.data_dir.with_name(f"{self.data_dir.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, ready: bool = True) -> float:
        """Start it; with `ready`, return when it answers. Seconds that this took."""
        assert self._process is None
        began = time.monotonic()
        environment = os.environ | {
            "KB_API_KEY": KEY,
            "KB_EMBEDDING__CACHE_DIR": str(model_cache()),
            **self.settings,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "kb.cli", "serve"),
                    *("--data-dir", str(self.data_dir), "--port", str(self.port)),
                ],
                env=environment,
                stdout=log,
                stderr=log,
            )
        if ready:
            self.wait_until_ready()
        return time.monotonic() - began

    def wait_until_ready(self, limit_s: float = 60.0) -> None:
        """Return when it answers; fails with its log when it ends instead."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            assert self._process is not None
            code = self._process.poll()
            assert code is None, f"kb serve ended with {code}:\n{self.text()[-4000:]}"
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready within {limit_s} s:\n{self.text()[-4000:]}")

    def wait_until(self, done: Callable[[], bool], limit_s: float) -> None:
        """Poll; fails with its log when it takes longer."""
        ends = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < ends, f"not within {limit_s} s:\n{self.text()[-4000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, by its id; returns when the process is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        code = self._process.wait(timeout=60)
        self._process = None
        return code

    def hurry_jobs(self) -> None:
        """Let the time of every job come now."""
        with closing(sqlite3.connect(self.data_dir / "kb.db", timeout=30)) as db, db:
            db.execute("UPDATE jobs SET not_before = created_at")

    def text(self) -> str:
        """What it printed so far, in all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
