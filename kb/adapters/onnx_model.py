"""Inference of an exported sentence-transformers model by ONNX Runtime, without torch."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kb.adapters.model_layout import ModelLayout
from kb.metrics import EMBEDDED_TOKENS
from pipelines.errors import TransientError
from pipelines.types import Vector, Vectors

Ids = NDArray[np.int64]
"""int64[tokens], special tokens included"""
T = TypeVar("T")

MODEL_FILE = "model.onnx"
QUERY_FILE = "query.onnx"
"""The model in the form that is faster for queries; not every model has one."""
TOKENIZER_FILE = "tokenizer.json"

_CHARS_PER_TOKEN = 32
_TEXTS_PER_TASK = 64
_MAX_BATCH_TOKENS = 8192  # bounds the memory of attention for models with long contexts


class OnnxUnusable(Exception):
    """Why a model is not served by ONNX Runtime; torch can still serve it."""


class OnnxBackend:
    """An exported model in ONNX Runtime, without torch.

    Queries run in the caller's thread. Documents are cut into mini-batches of texts of like length
    for a pool of threads of lower priority, so that a query never waits behind them.

    Args:
        directory: holds `model.onnx`, `tokenizer.json` and perhaps `query.onnx`.
        threads: mini-batches that run at once, each on one core.
        batch_size: most texts per mini-batch.
        niceness: added to the pool's threads' niceness, 0-19; Linux only.
        int8_queries: use `query.onnx` if it is there.
    Raises:
        OnnxUnusable: the files cannot be loaded or ask for inputs that we do not make.
    """

    def __init__(
        self,
        directory: Path,
        layout: ModelLayout,
        *,
        threads: int,
        batch_size: int,
        niceness: int,
        int8_queries: bool = True,
    ) -> None:
        # Its own threads would tokenise documents at normal priority, in the way of queries.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._layout = layout
        self._session = self._query_session = open_session(directory / MODEL_FILE)
        if int8_queries and (directory / QUERY_FILE).exists():
            self._query_session = open_session(directory / QUERY_FILE)
        self._inputs = {value.name for value in self._session.get_inputs()}
        if extra := self._inputs - {"input_ids", "attention_mask", "token_type_ids"}:
            raise OnnxUnusable(f"the exported model wants the inputs {', '.join(sorted(extra))}")
        self._output = self._session.get_outputs()[0].name
        self._whole = open_tokenizer(directory / TOKENIZER_FILE)
        self._cut = open_tokenizer(directory / TOKENIZER_FILE)
        self._cut.enable_truncation(layout.max_tokens)
        self._threads, self._batch_size = threads, batch_size
        self._closed = False
        self._pool = ThreadPoolExecutor(
            threads, "kb-embed", initializer=_lower_priority, initargs=(niceness,)
        )

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._layout.dim or len(self.embed_query("")))

    def embed_query(self, text: str) -> Vector:
        """float32[dim], L2-normalised."""
        (clean,) = clean_texts([self._layout.query_prompt + text])
        # Not `encode_batch_fast`: that lets go of the interpreter lock, and may then wait for a
        # search on another thread, which holds it for milliseconds. Inference runs without it.
        encoding = self._cut.encode(self._clip(clean))
        ids = np.array(encoding.ids, dtype=np.int64)
        row: Vector = self._run(self._query_session, [ids])[0]
        return row

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """float32[n, dim], L2-normalised, in the order of `texts`; n > 0."""
        prompt = self._layout.document_prompt
        if urgent:
            return np.concatenate(
                [self._run(self._session, self.tokenize([text], prompt)) for text in texts]
            )
        slices = [
            partial(self.tokenize, texts[i : i + _TEXTS_PER_TASK], prompt)
            for i in range(0, len(texts), _TEXTS_PER_TASK)
        ]
        rows = [ids for part in self._in_pool(slices) for ids in part]
        EMBEDDED_TOKENS.inc(sum(len(ids) for ids in rows))
        batches = self._batches(rows)
        embedded = self._in_pool(
            [partial(self._run, self._session, [rows[i] for i in b]) for b in batches]
        )
        vectors = np.empty((len(rows), embedded[0].shape[1]), dtype=np.float32)
        for batch, part in zip(batches, embedded, strict=True):
            vectors[batch] = part
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, special tokens and no prompt included."""
        return [len(encoding.ids) for encoding in self._whole.encode_batch_fast(clean_texts(texts))]

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[Ids]:
        """What the model is given: int64[tokens] per text, at most `max_tokens` each."""
        clipped = [self._clip(prompt + text) for text in clean_texts(texts)]
        encodings = self._cut.encode_batch_fast(clipped)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def close(self) -> None:
        """Drop waiting mini-batches and end the threads; their callers get TransientError."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def _in_pool(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        futures: list[Future[T]] = []
        try:
            futures += (self._pool.submit(task) for task in tasks)
            return [future.result() for future in futures]
        except (CancelledError, RuntimeError) as exc:
            if self._closed:
                raise TransientError(f"the model {self._layout.name} was closed meanwhile") from exc
            raise
        finally:
            for future in futures:
                future.cancel()

    def _batches(self, rows: Sequence[Ids]) -> list[list[int]]:
        """Indices of rows, longest first: what a mini-batch pads is little, its end is even."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        most = min(self._batch_size, -(-len(rows) // self._threads))
        batches = []
        while order:
            size = max(1, min(most, _MAX_BATCH_TOKENS // len(rows[order[0]])))
            batches.append(order[:size])
            order = order[size:]
        return batches

    def _clip(self, text: str) -> str:
        """A prefix with the same first `max_tokens` tokens: truncating comes after tokenising.

        A cut through a text changes the words at the cut and none before them, so a prefix will do
        whose first `max_tokens` tokens end some words before its last one.
        """
        limit = self._layout.max_tokens
        size = _CHARS_PER_TOKEN * limit
        while size < len(text):
            prefix = text[:size]
            words = self._whole.encode_batch([prefix], add_special_tokens=False)[0].word_ids
            if len(words) > limit and (words[limit] or 0) + 4 < (words[-1] or 0):
                return prefix
            size *= 4
        return text

    def _run(self, session: Any, rows: Sequence[Ids]) -> Vectors:
        lengths = np.array([len(row) for row in rows])
        ids = np.zeros((len(rows), max(1, lengths.max())), dtype=np.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        feed = {
            "input_ids": ids,
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": np.zeros_like(ids),
        }
        answer = session.run(
            [self._output], {name: feed[name] for name in feed if name in self._inputs}
        )
        return normalised(pooled(answer[0], mask, self._layout.pooling))


def pooled(
    tokens: NDArray[np.float32], mask: NDArray[np.bool_], modes: Sequence[str]
) -> NDArray[np.float32]:
    """One vector per text from its tokens' vectors, as sentence-transformers pools.

    Args:
        tokens: float32[n, length, width].
        mask: bool[n, length], True for the text's own tokens, which come first.
        modes: of `cls`, `max`, `mean`, `mean_sqrt_len_tokens`; the results are concatenated.
    Returns:
        float32[n, width * len(modes)].
    """
    weights = mask.astype(np.float32)
    counts = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    parts: list[NDArray[np.float32]] = []
    for mode in modes:
        if mode == "cls":
            parts.append(tokens[:, 0])
        elif mode == "max":
            parts.append(np.where(mask[:, :, None], tokens, -np.inf).max(axis=1))
        else:
            sums = np.matmul(weights[:, None, :], tokens)[:, 0]
            parts.append(sums / (counts if mode == "mean" else np.sqrt(counts)))
    return np.concatenate(parts, axis=1)


def normalised(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """Rows of length 1, float32, C-contiguous; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def open_session(file: Path) -> Any:
    """One thread per run, since runs are what is done in parallel.

    Raises:
        OnnxUnusable: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise OnnxUnusable(f"ONNX Runtime cannot load {str(file)!r}: {exc}") from exc


def open_tokenizer(file: Path) -> Any:
    """Neither pads nor cuts.

    Raises:
        OnnxUnusable: it cannot be loaded.
    """
    from tokenizers import Tokenizer  # type: ignore[import-untyped]

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as exc:
        raise OnnxUnusable(f"cannot load the tokenizer {str(file)!r}: {exc}") from exc
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _lower_priority(niceness: int) -> None:
    if sys.platform != "linux":  # elsewhere setpriority speaks of whole processes only
        return
    with contextlib.suppress(OSError):
        me = threading.get_native_id()
        current = os.getpriority(os.PRIO_PROCESS, me)
        os.setpriority(os.PRIO_PROCESS, me, min(19, current + niceness))


def clean_texts(texts: Iterable[str]) -> list[str]:
    """The texts, lone surrogates (no Unicode text has them) as question marks."""
    return [text if text.isascii() else text.encode(errors="replace").decode() for text in texts]
