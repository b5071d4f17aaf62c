"""Every file, and whether it arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice

from kb.errors import NotFound
from kb.migrate.ledger import Ledger
from kb.ports import BlobStore

_STEP = "files"
_AT_ONCE = 8
"""Files that are held in memory."""
_NAMED = 20


def copy_files(
    source: BlobStore,
    target: BlobStore,
    ledger: Ledger,
    progress: Callable[[str, int, int], None],
) -> int:
    """Copy what is not there yet; how many files the source has."""
    after: str = ledger.cursor(_STEP) or ""
    copied = 0
    keys = source.keys()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while part := list(islice(keys, _AT_ONCE)):
            left = [key for key in part if key > after]
            list(pool.map(lambda key: target.put(key, source.get(key)), left))
            copied += len(part)
            if left:
                ledger.advance(_STEP, left[-1])
            progress(_STEP, copied, 0)
    return copied


def differing_files(
    source: BlobStore, target: BlobStore, progress: Callable[[str, int, int], None]
) -> list[str]:
    """One sentence for each file that is missing, too much or has other bytes; the first 20."""
    return list(islice(_differing(source, target, progress), _NAMED))


def _differing(
    source: BlobStore, target: BlobStore, progress: Callable[[str, int, int], None]
) -> Iterator[str]:
    compared = 0
    keys = source.keys()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while part := list(islice(keys, _AT_ONCE)):
            before = pool.map(lambda key: _digest(source, key), part)
            after = pool.map(lambda key: _digest(target, key), part)
            for key, wanted, found in zip(part, before, after, strict=True):
                if found is None:
                    yield f"file {key} is missing"
                elif found != wanted:
                    yield f"file {key} has other bytes"
            compared += len(part)
            progress("compare files", compared, 0)
    for key in target.keys():  # noqa: SIM118 - not a dict
        if not source.exists(key):
            yield f"file {key} is not the source's"


def _digest(blobs: BlobStore, key: str) -> str | None:
    try:
        return sha256(blobs.get(key)).hexdigest()
    except NotFound:
        return None
