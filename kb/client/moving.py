"""Datasets as archives."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kb.client.datasets import Datasets
from kb.client.errors import ClientError
from kb.client.wire import LONG_S, Json


class Moving(Datasets):
    """Calls that move datasets."""

    def export_dataset(
        self,
        name: str,
        file: str | Path,
        *,
        with_vectors: bool = False,
        progress: Callable[[int], None] = lambda size: None,
    ) -> int:
        """Write a dataset to an archive, as it arrives; the file appears when it is whole.

        Args:
            progress: called with the bytes of each part.
        Returns:
            The archive's bytes.
        Raises:
            OSError: the file cannot be written.
        """
        path, size = Path(file), 0
        part = path.with_name(f"{path.name}.part")
        params = {"vectors": "true"} if with_vectors else None
        try:
            with (
                self._reached(),
                self._http.stream(
                    "GET", f"{self._path(name)}/export", params=params, timeout=LONG_S
                ) as response,
            ):
                if not response.is_success:
                    response.read()
                    raise self._refusal(response)
                with part.open("wb") as out:
                    for piece in response.iter_bytes():
                        out.write(piece)
                        size += len(piece)
                        progress(len(piece))
            if not zipfile.is_zipfile(part):
                raise ClientError(
                    f"{self.url} broke off while it sent the archive; look at its log, try again"
                )
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return size

    def import_dataset(
        self,
        file: str | Path,
        *,
        name: str | None = None,
        progress: Callable[[int], None] = lambda size: None,
    ) -> Json:
        """Send an archive; its dataset appears when all of it is there.

        Returns:
            The dataset; `imported` says how many documents answer and how many are `queued`.
        Raises:
            OSError: the file cannot be read.
        """
        path = Path(file)

        def pieces() -> Iterator[bytes]:
            with path.open("rb") as opened:
                while piece := opened.read(2**20):
                    progress(len(piece))
                    yield piece

        return self._json(
            "POST",
            "/v1/datasets/import",
            params={"name": name} if name is not None else None,
            content=pieces(),
            headers={
                "Content-Type": "application/zip",
                "Content-Length": str(path.stat().st_size),
            },
            timeout=LONG_S,
        )
