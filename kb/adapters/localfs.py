"""BlobStore in a local directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kb.adapters.blob_checks import check_blob_key
from kb.errors import NotFound, StoreUnavailable

_STORE = "blob store"
_PARTS = ".parts"
"""Files on their way; no key starts with a dot, so nothing here is ever taken for a blob."""
_LEFTOVER_S = 3600.0
"""A file on its way for so long belongs to a writer that was killed."""
_TRIES = 5


class LocalBlobs:
    """Files under one directory; a write is whole or absent, and survives a loss of power.

    A write goes to a file of its own first, is synced, and gets its name in one step. What killed
    writers left is removed when the store is opened.

    Args:
        min_free_bytes: writes are refused that would leave less of the disk free.
        min_free_share: the same as a share of the disk, 0 to 1; the larger bound counts.
    Raises:
        StoreUnavailable: the directory cannot be made or read.
    """

    def __init__(
        self, directory: Path, *, min_free_bytes: int = 256_000_000, min_free_share: float = 0.0
    ) -> None:
        self._root = directory
        self._parts = directory / _PARTS
        self._min_free_bytes = min_free_bytes
        self._min_free_share = min_free_share
        with _translated("open"):
            self._parts.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()

    def put(self, key: str, data: bytes) -> None:
        """See `kb.ports.BlobStore`; refuses when the disk is almost full."""
        path = self._path(key)
        with _translated("put"):
            self._check_space(len(data))
            descriptor, name = tempfile.mkstemp(dir=self._parts)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._rename(Path(name), path, key)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            # Every directory up to the root: one that another writer has just made may not be on
            # disk yet, and the sync of a directory that did not change costs next to nothing.
            for parent in path.parents:
                with contextlib.suppress(FileNotFoundError):  # deleted since, with the blob
                    _sync_directory(parent)
                if parent == self._root:
                    break

    def get(self, key: str) -> bytes:
        """See `kb.ports.BlobStore`."""
        path = self._path(key)
        with _translated("get"):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
                self._check_directory("get")
                raise NotFound("blob", key) from exc

    def exists(self, key: str) -> bool:
        """See `kb.ports.BlobStore`."""
        path = self._path(key)
        with _translated("exists"):
            # Not is_file(), which takes a disk that cannot be read for a blob that is not there.
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                self._check_directory("exists")
                return False
            return not path.is_dir()

    def delete(self, key: str) -> None:
        """See `kb.ports.BlobStore`; directories that are empty now go, too."""
        path = self._path(key)
        with _translated("delete"):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                self._check_directory("delete")
                return
            except OSError:
                if path.is_dir():  # EISDIR here, EPERM elsewhere
                    return
                raise
        with contextlib.suppress(OSError):
            for parent in path.parents:
                if parent == self._root:
                    break
                parent.rmdir()

    def keys(self, prefix: str = "", *, older_than_s: float = 0.0) -> Iterator[str]:
        """See `kb.ports.BlobStore`."""
        newest = time.time() - older_than_s if older_than_s > 0 else None
        with _translated("keys"):
            self._check_directory("keys")
            yield from _walk(self._root, "", prefix, newest)

    def close(self) -> None:
        """See `kb.ports.BlobStore`; nothing is held."""

    def _path(self, key: str) -> Path:
        check_blob_key(key)
        return self._root / key

    def _rename(self, source: Path, target: Path, key: str) -> None:
        for left in reversed(range(_TRIES)):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
            except FileNotFoundError:
                if not left:  # a delete took the empty directory away between the two steps
                    raise
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
                # mkdir says so, too, when a delete took the directory away as it looked.
                below_a_blob = any(parent.is_file() for parent in target.parents)
                if isinstance(exc, FileExistsError) and not below_a_blob and left:
                    continue
                raise ValueError(
                    f"blob key {key!r}: a blob cannot be stored where others have their folder, "
                    "nor below another blob; use another key"
                ) from exc
            else:
                return

    def _check_directory(self, operation: str) -> None:
        """A disk that is not mounted is not an empty store."""
        if not self._parts.is_dir():
            raise StoreUnavailable(
                _STORE,
                operation,
                f"the directory {str(self._root)!r} is gone; is its disk mounted?",
            )

    def _check_space(self, size: int) -> None:
        usage = shutil.disk_usage(self._root)
        floor = max(self._min_free_bytes, int(usage.total * self._min_free_share))
        if usage.free - size < floor:
            raise StoreUnavailable(
                _STORE, "put", f"disk almost full ({usage.free} bytes free); make room"
            )

    def _remove_leftovers(self) -> None:
        oldest = time.time() - _LEFTOVER_S
        for part in self._parts.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_mtime < oldest:
                    part.unlink()


def _walk(directory: Path, at: str, prefix: str, newest: float | None) -> Iterator[str]:
    """Keys below a directory, ascending as whole strings, whatever is written meanwhile."""
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    # With its slash, a directory sorts among files as the keys below it do.
    named = ((e.name + "/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in entries)
    for name, entry in sorted(named, key=lambda pair: pair[0]):
        key = at + name
        if name.startswith(".") or not (key.startswith(prefix) or prefix.startswith(key)):
            continue
        if name.endswith("/"):
            yield from _walk(Path(entry.path), key, prefix, newest)
        elif key.startswith(prefix) and (newest is None or _modified(entry) <= newest):
            yield key


def _modified(entry: os.DirEntry[str]) -> float:
    """When it was written; never, in effect, for what is gone meanwhile."""
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return float("inf")


@contextlib.contextmanager
def _translated(operation: str) -> Iterator[None]:
    """Raises: StoreUnavailable: the file system failed."""
    try:
        yield
    except OSError as exc:
        raise StoreUnavailable(_STORE, operation, str(exc)) from exc


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
