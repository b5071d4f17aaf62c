"""Reranker over a local cross-encoder: ONNX Runtime, or torch where that cannot do."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kb.adapters.cross_encoder_export import CHILD, read_cross_encoder
from kb.adapters.model_layout import ModelLayout
from kb.adapters.onnx_export import exported
from kb.adapters.onnx_model import (
    MODEL_FILE,
    TOKENIZER_FILE,
    OnnxUnusable,
    clean_texts,
    open_session,
    open_tokenizer,
)
from kb.errors import ProviderNotInitialized
from pipelines.errors import TransientError

log = logging.getLogger("kb.rerank")

_CHARS_PER_TOKEN = 32


class CrossEncoder(Protocol):
    """A loaded model."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """In (0, 1), of one mini-batch; n > 0."""
        ...


class LocalReranker:
    """Reranks on this machine's CPU, without a network.

    Constructing reads the model's small configuration files only. The first call loads the model
    in the background; the first one ever, per cache directory, exports it to ONNX in a child
    process. A call whose budget ends before that raises TransientError, and later ones find it.

    Args:
        path: directory of a cross-encoder with one label, as sentence-transformers saves it.
        cache_dir: keeps one export per model content.
        threads: mini-batches that run at once, > 0.
        batch_size: texts per mini-batch, > 0.
        budget_s: of a call that gives none.
        max_tokens: query and text together; None: what the model reads.
    Raises:
        ProviderNotInitialized: the directory holds no such model.
    """

    def __init__(
        self,
        path: Path,
        *,
        cache_dir: Path,
        threads: int,
        batch_size: int = 8,
        budget_s: float = 2.0,
        max_tokens: int | None = None,
    ) -> None:
        self._layout = read_cross_encoder(path)
        self._cache_dir, self._budget_s = cache_dir, budget_s
        self._batch_size, self._most = batch_size, threads
        self._max_tokens = min(max_tokens or self._layout.max_tokens, self._layout.max_tokens)
        self._threads = ThreadPoolExecutor(threads, "kb-rerank")
        self._loader = ThreadPoolExecutor(1, "kb-rerank-load")
        self._lock = threading.Lock()
        self._loading: Future[CrossEncoder] | None = None
        self._closed = False

    def rerank(
        self, query: str, texts: Sequence[str], *, budget_s: float | None = None
    ) -> list[float | None]:
        """See `kb.ports.Reranker`."""
        ends = time.monotonic() + (budget_s or self._budget_s)
        if not texts:
            return []
        model = self._loaded(ends)
        scores: list[float | None] = [None] * len(texts)
        waiting = list(range(0, len(texts), self._batch_size))[::-1]
        running: dict[Future[list[float]], int] = {}
        try:
            while (waiting or running) and (left_s := ends - time.monotonic()) > 0:
                while waiting and len(running) < self._most:
                    at = waiting.pop()
                    batch = texts[at : at + self._batch_size]
                    running[self._threads.submit(model.scores, query, batch)] = at
                for done in wait(running, left_s, FIRST_COMPLETED).done:
                    at = running.pop(done)
                    scores[at : at + self._batch_size] = done.result()
        except RuntimeError as exc:
            if self._closed:
                raise self._gone() from exc
            raise
        finally:
            for late in running:
                late.cancel()
        if all(score is None for score in scores):
            raise TransientError(
                f"the rerank model {self._layout.name} judged no text within its time"
            )
        return scores

    @property
    def backend(self) -> str:
        """`onnx` or `torch`; loads the model."""
        return "onnx" if isinstance(self._start().result(), OnnxCrossEncoder) else "torch"

    def close(self) -> None:
        """End the threads and let go of the model; repeats safely."""
        with self._lock:
            self._closed = True
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(cancel_futures=True)

    def __repr__(self) -> str:
        return f"LocalReranker({str(self._layout.path)!r})"

    def _loaded(self, ends: float) -> CrossEncoder:
        try:
            return self._start().result(max(0.0, ends - time.monotonic()))
        except TimeoutError as exc:
            raise TransientError(
                f"the rerank model {self._layout.name} is still being loaded"
            ) from exc

    def _start(self) -> Future[CrossEncoder]:
        with self._lock:
            if self._closed:
                raise self._gone()
            failed = (
                self._loading is not None
                and self._loading.done()
                and (self._loading.cancelled() or self._loading.exception() is not None)
            )
            if self._loading is None or failed:
                self._loading = self._loader.submit(self._load)
            return self._loading

    def _load(self) -> CrossEncoder:
        try:
            directory = exported(self._layout, self._cache_dir, command=CHILD)
            try:
                return OnnxCrossEncoder(directory, self._max_tokens)
            except OnnxUnusable:
                shutil.rmtree(directory, ignore_errors=True)  # the next process exports anew
                raise
        except OnnxUnusable as exc:
            log.warning("the model %s runs on torch, which is slower: %s", self._layout.name, exc)
            return TorchCrossEncoder(self._layout, self._max_tokens)

    def _gone(self) -> TransientError:
        return TransientError(f"the rerank model {self._layout.name} is closed")


class OnnxCrossEncoder:
    """An exported model in ONNX Runtime, without torch; safe for threads.

    Raises:
        OnnxUnusable: the files cannot be loaded or ask for inputs that we do not make.
    """

    def __init__(self, directory: Path, max_tokens: int) -> None:
        self._session = open_session(directory / MODEL_FILE)
        self._inputs = {value.name for value in self._session.get_inputs()}
        if extra := self._inputs - {"input_ids", "attention_mask", "token_type_ids"}:
            raise OnnxUnusable(f"the exported model wants the inputs {', '.join(sorted(extra))}")
        self._tokenizer = open_tokenizer(directory / TOKENIZER_FILE)
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")
        self._chars = _CHARS_PER_TOKEN * max_tokens

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """See `CrossEncoder`."""
        (asked,) = clean_texts([query[: self._chars]])
        clean = clean_texts(text[: self._chars] for text in texts)
        rows = self._tokenizer.encode_batch([(asked, text) for text in clean])
        shape = (len(rows), max(len(row.ids) for row in rows))
        feed = {name: np.zeros(shape, dtype=np.int64) for name in self._inputs}
        for at, row in enumerate(rows):
            values = {
                "input_ids": row.ids,
                "attention_mask": row.attention_mask,
                "token_type_ids": row.type_ids,
            }
            for name, array in feed.items():
                array[at, : len(row.ids)] = values[name]
        logits = self._session.run(None, feed)[0][:, 0].astype(np.float64)
        return [float(score) for score in 1 / (1 + np.exp(-np.clip(logits, -700, 700)))]


class TorchCrossEncoder:
    """A model as sentence-transformers itself runs it, one mini-batch at a time.

    Raises:
        ProviderNotInitialized: sentence-transformers cannot load the model.
    """

    def __init__(self, layout: ModelLayout, max_tokens: int) -> None:
        self._lock = threading.Lock()
        self._chars = _CHARS_PER_TOKEN * max_tokens
        try:
            import torch
            from sentence_transformers import CrossEncoder as Whole

            self._model: Any = Whole(
                str(layout.path),
                device="cpu",
                local_files_only=True,
                max_length=max_tokens,
                activation_fn=torch.nn.Sigmoid(),
            )
        except Exception as exc:  # a model directory's own code and files can fail in any way
            raise ProviderNotInitialized(
                f"sentence-transformers cannot load the model {str(layout.path)!r}: {exc}"
            ) from exc

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """See `CrossEncoder`."""
        pairs = [(query[: self._chars], text[: self._chars]) for text in clean_texts(texts)]
        with self._lock:
            found = self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False)
        return [float(score) for score in found]
