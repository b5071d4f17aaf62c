"""The data directory belongs to one process at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from kb.errors import DataDirectoryInUse


class DataDirectory:
    """An exclusive lock on a data directory that says who holds it.

    The lock is the operating system's: it goes with the process, however that ends.

    Args:
        url: where this process can be reached.
        shared: other processes may use it, too: nothing in it belongs to one alone. No lock then.
    Raises:
        DataDirectoryInUse: another process holds it; the message names it and what to do.
    """

    def __init__(self, path: Path, *, url: str | None = None, shared: bool = False) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._holder = path / "holder.json"
        self._lock = FileLock(path / "lock", timeout=0)
        if shared:
            return
        try:
            self._lock.acquire()
        except Timeout as exc:
            raise DataDirectoryInUse(_who(path, self._holder)) from exc
        self.announce(url)

    def announce(self, url: str | None) -> None:
        """Write down who holds the directory and where it can be reached."""
        if self._lock.is_locked:
            self._holder.write_text(json.dumps({"pid": os.getpid(), "url": url}))

    def close(self) -> None:
        """Let go; repeats safely."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _who(path: Path, holder: Path) -> str:
    try:
        known = json.loads(holder.read_text())
    except (OSError, ValueError):
        known = {}
    pid, url = known.get("pid"), known.get("url")
    who = f"process {pid}" if pid else "another process"
    if url:
        return (
            f"the data directory {str(path)!r} is in use by {who}, a server at {url}; "
            f"reach it with --url {url} (and KB_API_KEY), or choose another --data-dir"
        )
    return (
        f"the data directory {str(path)!r} is in use by {who}; wait until it ends, reach a "
        "running server with --url, or choose another --data-dir"
    )
