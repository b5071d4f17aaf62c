"""Zip containers of office formats, refused before anything is unpacked when they are bombs."""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO
from typing import IO

from pipelines.nodes.extract.base import MB, ExtractOptions, corrupt, encrypted, limit_exceeded

_RATIO_FROM_BYTES = 10 * MB
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError)


class Archive:
    """The members of a zip file by name, within the limits.

    Names are compared without regard to case and slash direction: some writers use backslashes.

    Raises:
        ExtractionError: `corrupt`, `encrypted` or `limit_exceeded`.
    """

    def __init__(self, data: bytes, name: str, options: ExtractOptions) -> None:
        self._name = name
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
            members = self._zip.infolist()
        except _BROKEN as exc:
            raise corrupt(name, f"is a damaged or cut-off archive ({exc})") from exc
        _check(members, name, options)
        self._members = {_key(m.filename): m for m in members}

    def names(self) -> list[str]:
        """Lower case, forward slashes, in the archive's order."""
        return list(self._members)

    def __contains__(self, member: str) -> bool:
        return _key(member) in self._members

    def read(self, member: str) -> bytes:
        """The whole member; its checksum is verified."""
        with self.open(member) as stream:
            try:
                return stream.read()
            except _BROKEN as exc:
                raise corrupt(self._name, f"has a damaged part {member!r} ({exc})") from exc

    def open(self, member: str) -> IO[bytes]:
        """The member as a stream; reading it may raise what `BROKEN` lists."""
        try:
            return self._zip.open(self._members[_key(member)])
        except KeyError as exc:
            raise corrupt(self._name, f"lacks its part {member!r}") from exc
        except _BROKEN as exc:
            raise corrupt(self._name, f"has a damaged part {member!r} ({exc})") from exc


BROKEN = _BROKEN


def _key(member: str) -> str:
    return member.replace("\\", "/").lstrip("/").lower()


def _check(members: list[zipfile.ZipInfo], name: str, options: ExtractOptions) -> None:
    """Sizes are the declared ones: the reader stops at them, and the checksum tells a lie."""
    if len(members) > options.max_archive_members:
        raise limit_exceeded(
            name,
            f"has {len(members):,} members",
            "max_archive_members",
            options.max_archive_members,
        )
    total = sum(m.file_size for m in members)
    if total > options.max_archive_bytes:
        raise limit_exceeded(
            name, f"unpacks to {total:,} bytes", "max_archive_bytes", options.max_archive_bytes
        )
    for member in members:
        size = member.file_size
        if member.flag_bits & 0x1:
            raise encrypted(name)
        if size > options.max_member_bytes:
            raise limit_exceeded(
                name,
                f"has a member {member.filename!r} of {size:,} bytes",
                "max_member_bytes",
                options.max_member_bytes,
            )
        ratio = size // max(member.compress_size, 1)
        if size > _RATIO_FROM_BYTES and ratio > options.max_archive_ratio:
            raise limit_exceeded(
                name,
                f"has a member {member.filename!r} that unpacks to {ratio:,} times its size",
                "max_archive_ratio",
                options.max_archive_ratio,
            )
