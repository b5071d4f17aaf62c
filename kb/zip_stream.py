"""A zip that is sent while it is made."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

_PIECE = 2**20


class Outlet:
    """A file that can only be written to; what was written is taken away."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Hold the bytes until they are taken."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> Iterator[bytes]:
        """What was written since the last time, in pieces of at most 1 MiB."""
        parts, self._parts = self._parts, []
        whole = b"".join(parts)
        for at in range(0, len(whole), _PIECE):
            yield whole[at : at + _PIECE]


def open_zip() -> tuple[zipfile.ZipFile, Outlet]:
    """A zip to write to, and where its bytes come out."""
    outlet = Outlet()
    out: Any = outlet
    return zipfile.ZipFile(out, "w"), outlet
