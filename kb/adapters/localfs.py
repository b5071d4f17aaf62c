"""BlobStore in a local directory."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kb.errors import NotFound, StoreUnavailable

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class LocalBlobs:
    """Files under one directory; a write is whole or absent, and survives a loss of power."""

    def __init__(
        self, directory: Path, *, min_free_bytes: int = 256_000_000, min_free_share: float = 0.0
    ) -> None:
        self._root = directory
        self._min_free_bytes = min_free_bytes
        self._min_free_share = min_free_share
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, data: bytes) -> None:
        """See `kb.ports.BlobStore`; refuses when the disk is almost full."""
        path = self._path(key)
        self._check_space(len(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)

    def get(self, key: str) -> bytes:
        """See `kb.ports.BlobStore`."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError as exc:
            raise NotFound("blob", key) from exc

    def exists(self, key: str) -> bool:
        """See `kb.ports.BlobStore`."""
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """See `kb.ports.BlobStore`."""
        self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str = "", *, older_than_s: float = 0.0) -> Iterator[str]:
        """See `kb.ports.BlobStore`."""
        newest = time.time() - older_than_s
        found = (
            path.relative_to(self._root).as_posix()
            for path in self._root.rglob("*")
            if path.is_file()
            and not path.name.startswith(".part-")
            and path.stat().st_mtime <= newest
        )
        yield from sorted(key for key in found if key.startswith(prefix))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"blob key {key!r}; use parts of [A-Za-z0-9._-] joined by '/'")
        return self._root / key

    def _check_space(self, size: int) -> None:
        usage = shutil.disk_usage(self._root)
        floor = max(self._min_free_bytes, int(usage.total * self._min_free_share))
        if usage.free - size < floor:
            raise StoreUnavailable(
                "blob store", "put", f"disk almost full ({usage.free} bytes free); make room"
            )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
