"""Which files an `ingest` means, and the names that their documents get."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kb.cli.options import CliError

SEPARATOR = " › "
"""Stands for `/` in a document's name, which cannot hold a path."""


@dataclass(frozen=True)
class Source:
    """A file to ingest, and its document's name."""

    path: Path
    name: str


@dataclass(frozen=True)
class Found:
    """Files in the order given, sorted within a folder; and those of folders that no one reads."""

    sources: tuple[Source, ...]
    skipped: tuple[Path, ...]


def document_name(path: str) -> str:
    """`guides/setup.md` -> `guides › setup.md`."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return SEPARATOR.join(parts)


def find_sources(paths: Sequence[str], extensions: Collection[str]) -> Found:
    """The files behind paths: files, folders with all below them, and glob patterns.

    A document is named by its path below the folder, or below the fixed part of the pattern; a
    file by its own name. Where that makes names equal, folders above tell them apart. Hidden
    files in folders do not count.

    Args:
        extensions: what can be read, lower case, without dots.
    Raises:
        CliError: a path that does not exist, a named file that cannot be read, or nothing at all.
    """
    sources: dict[Path, Source] = {}
    skipped: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            below, ignored = _split(_walk(path), extensions)
            skipped += ignored
        elif path.exists():
            _, refused = _split([path], extensions)
            if refused:
                raise CliError(
                    f"cannot read {given!r}: no extractor for {path.suffix or 'such a name'}; "
                    f"supported: {', '.join(sorted(extensions))}"
                )
            path, below = path.parent, [path]
        elif glob.has_magic(given):
            path = _fixed_part(given)
            matches = [Path(p) for p in sorted(glob.glob(given, recursive=True))]
            files = [p for p in matches if p.is_file() and not _is_hidden(p.relative_to(path))]
            if not files:
                raise CliError(f"no file matches {given!r}")
            below, ignored = _split(files, extensions)
            skipped += ignored
        else:
            raise CliError(f"no such file or folder: {given!r}")
        for file in below:
            name = document_name(str(file.relative_to(path)))
            sources.setdefault(file.resolve(), Source(file, name))
    if not sources:
        kinds = sorted({p.suffix.lower() or p.name for p in skipped})
        reason = f"only files that cannot be read ({', '.join(kinds[:10])})" if kinds else "no file"
        raise CliError(f"nothing to ingest: {', '.join(paths)} holds {reason}")
    return Found(tuple(_told_apart(list(sources.values()))), tuple(skipped))


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(Path(name)))
        found += [Path(root, name) for name in sorted(files) if not _is_hidden(Path(name))]
    return found


def _is_hidden(path: Path) -> bool:
    """Dot files, and the lock files that office programs leave beside open documents."""
    return any(part.startswith((".", "~$")) and part not in (".", "..") for part in path.parts)


def _split(files: Sequence[Path], extensions: Collection[str]) -> tuple[list[Path], list[Path]]:
    readable = {file for file in files if file.suffix.lstrip(".").lower() in extensions}
    return [f for f in files if f in readable], [f for f in files if f not in readable]


def _fixed_part(pattern: str) -> Path:
    """The folder in which a pattern begins to vary."""
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return fixed


def _told_apart(sources: list[Source]) -> list[Source]:
    """The sources; equal names are made longer by the folders above, down from a common one."""
    same: dict[str, list[Path]] = defaultdict(list)
    for source in sources:
        same[source.name].append(source.path.resolve())
    roots = {name: os.path.commonpath(paths) for name, paths in same.items() if len(paths) > 1}
    renamed = [
        replace(source, name=document_name(os.path.relpath(source.path.resolve(), root)))
        if (root := roots.get(source.name))
        else source
        for source in sources
    ]
    if len({source.name for source in renamed}) < len(renamed):
        raise CliError("two of these files would get the same name; ingest their folders in turn")
    return renamed
