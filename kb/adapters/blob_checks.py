"""What every BlobStore asks of a key, before a store sees it."""

from __future__ import annotations

import re

MAX_KEY_CHARS = 512
MAX_PART_CHARS = 200
"""A file system's names end at 255 bytes, and S3's keys at 1024."""

_PART = rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MAX_PART_CHARS - 1}}}"
_KEY = re.compile(rf"{_PART}(/{_PART})*")


def is_blob_key(text: str) -> bool:
    """Whether a store could have written a blob under this key."""
    return len(text) <= MAX_KEY_CHARS and _KEY.fullmatch(text) is not None


def check_blob_key(key: str) -> None:
    """Raise ValueError for what is not a key: it could reach outside of the store."""
    if not is_blob_key(key):
        shown = repr(key) if len(key) <= 80 else f"{key[:77]!r}... ({len(key)} characters)"
        raise ValueError(
            f"blob key {shown}; use parts of 1 to {MAX_PART_CHARS} of A-Z, a-z, 0-9, '.', '_' and "
            f"'-' that do not start with '.', joined by '/', at most {MAX_KEY_CHARS} in all"
        )
