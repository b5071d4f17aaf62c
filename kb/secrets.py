"""Secrets at rest: credentials and signing keys are sealed before they reach the database.

Fernet (AES-128-CBC and HMAC-SHA256, https://github.com/fernet/spec) with several keys: the first
one seals, all of them open, so that a key can be replaced without an outage.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from kb.errors import Misconfigured, SecretUnreadable

KEY_FILE = "secret.key"
_MARK = "sealed:1:"
"""Before every sealed text, so that a clear one of an older version can be told."""
_KEY_BYTES = 32
_HINT_CHARS = 4
_REMEDY = "set KB_SECRET_KEY, for example to the output of: openssl rand -base64 32"


class Keyring:
    """Seals texts and opens them again; safe for threads.

    Args:
        keys: 32 bytes each; the first one seals, all of them open. None at all: this process can
            do neither.
        missing: why there is no key, and how to give one.
        source: where the keys come from, for messages.
    """

    def __init__(self, keys: Sequence[bytes], *, source: str, missing: str = "") -> None:
        self.source, self.missing = source, missing
        boxes = [Fernet(base64.urlsafe_b64encode(key)) for key in keys]
        self._box = MultiFernet(boxes) if boxes else None
        self._first = boxes[0] if boxes else None

    @property
    def usable(self) -> bool:
        """Whether there is a key."""
        return self._box is not None

    def seal(self, text: str) -> str:
        """The text as it may be stored: ASCII, another one at each call.

        Raises:
            Misconfigured: there is no key; the message says how to give one.
        """
        if self._box is None:
            raise Misconfigured(self.missing)
        return _MARK + self._box.encrypt(text.encode()).decode()

    def open(self, stored: str) -> str:
        """The text that was sealed; one that never was comes back as it is.

        Raises:
            SecretUnreadable: no key of ours sealed it.
        """
        if not is_sealed(stored):
            return stored
        if self._box is None:
            raise SecretUnreadable(f"a stored secret cannot be read: {self.missing}")
        try:
            return self._box.decrypt(stored.removeprefix(_MARK).encode()).decode()
        except (InvalidToken, ValueError) as exc:
            raise SecretUnreadable(
                f"a stored secret cannot be read: none of the keys of {self.source} sealed it; add "
                "the key that did (KB_SECRET_KEY takes several, separated by commas, the one to "
                "seal with first), or store the secret anew"
            ) from exc

    def is_current(self, stored: str) -> bool:
        """Whether the first key sealed it."""
        if self._first is None or not is_sealed(stored):
            return False
        try:
            self._first.decrypt(stored.removeprefix(_MARK).encode())
        except (InvalidToken, ValueError):
            return False
        return True

    def __repr__(self) -> str:
        return f"Keyring({self.source})"


def is_sealed(stored: str) -> bool:
    """Whether a stored text is a sealed one."""
    return stored.startswith(_MARK)


def hint_of(secret: str) -> str:
    """What may be shown of a secret: its last four characters, of a short one none."""
    return "…" + (secret[-_HINT_CHARS:] if len(secret) >= 3 * _HINT_CHARS else "")


def open_keyring(setting: str | None, directory: Path, *, several: bool) -> Keyring:
    """The keys of the setting, or those of the file in the data directory, which is made if needed.

    Args:
        setting: keys, separated by commas or white space.
        directory: there `secret.key` has a key in each line; only its owner can read it.
        several: other processes share the database, perhaps with directories of their own, so
            that a key that only this one has would be of no use.
    Raises:
        Misconfigured: the setting or the file holds something else than keys.
    """
    if setting is not None:
        return Keyring(_keys(setting, "KB_SECRET_KEY"), source="KB_SECRET_KEY")
    file = directory / KEY_FILE
    if several and not file.exists():
        return Keyring(
            (),
            source="nowhere",
            missing="KB_REDIS_URL is set, so several processes share the stored secrets, and need "
            f"the same key; {_REMEDY}, the same in all of them",
        )
    if not file.exists():
        _make(file)
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError) as exc:
        raise Misconfigured(f"the key file {str(file)!r} cannot be read: {exc}") from exc
    return Keyring(_keys(text, f"the file {str(file)!r}"), source=f"the file {str(file)!r}")


def _keys(text: str, source: str) -> list[bytes]:
    keys = [_key(part) for part in re.split(r"[,\s]+", text.strip()) if part]
    if not keys or None in keys:
        raise Misconfigured(
            f"{source} holds something that is no key: a key is the base64 of {_KEY_BYTES} bytes; "
            f"{_REMEDY}"
        )
    return [key for key in keys if key is not None]


def _key(text: str) -> bytes | None:
    try:
        key = base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == _KEY_BYTES else None


def _make(file: Path) -> None:
    """A new key, on disk when it returns; of processes that do it at once, one wins."""
    handle, temporary = mkstemp(prefix=f"{KEY_FILE}.", dir=file.parent)  # with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as opened:
            opened.write(Fernet.generate_key().decode() + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        os.unlink(temporary)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
