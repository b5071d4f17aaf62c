"""Where a worker can be made to die: named places between its steps, and the trap that waits there.

The product knows nothing of this. `watch` wraps the named functions in the process that calls it;
what happens there is written in a file, so that a running worker can be told at any time.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS: dict[str, str] = {
    "claim": "kb.crew:claim_next",
    "load": "kb.ingestion.run:_load",
    "read file": "kb.adapters.localfs:LocalBlobs.get",
    "keep text": "kb.adapters.localfs:LocalBlobs.put",
    "stage": "kb.ingestion.sink:DocumentSink._commit_stage",
    "stage rows": "kb.ingestion.sink:DocumentSink._stage_rows",
    "upsert": "kb.adapters.qdrant_server.index:QdrantServerIndex.upsert",
    "mark": "kb.ingestion.sink:DocumentSink._acknowledge",
    "marked": "kb.ingestion.sink:DocumentSink._forget_written",
    "switch": "kb.ingestion.sink:DocumentSink._switch_if_indexed",
    "switch rows": "kb.ingestion.sink:switch_rows",
    "end run": "kb.ingestion.run:_Recorder.succeeded",
    "ingest": "kb.crew:Crew.ingest_next",
    "renew": "kb.crew:renew",
    "job": "kb.maintenance:claim_job",
    "delete points": "kb.adapters.qdrant_server.index:QdrantServerIndex.delete",
    "delete document": "kb.adapters.qdrant_server.index:QdrantServerIndex.delete_document",
    "delete dataset": "kb.adapters.qdrant_server.index:QdrantServerIndex.delete_dataset",
    "delete file": "kb.adapters.localfs:LocalBlobs.delete",
    "job done": "kb.maintenance:finish_job",
    "sweep": "kb.sweeper:sweep",
}
"""Step -> the function that takes it."""

EMBEDDING_STEPS: dict[str, str] = {
    "embed": "kb.adapters.local_embedder:LocalEmbedder.embed_documents",
    "remember": "kb.ingestion.embedding_cache:remember_vectors",
}
"""Steps of datasets with vectors only."""

NODES = ("extract", "clean", "chunk")
"""Roles of the nodes before the first checkpoint."""

_NOTHING_DONE = {"claim", "ingest", "job"}
"""After these, a call that found nothing to do does not count."""


def places(*, embedding: bool = False) -> list[str]:
    """`before STEP` and `after STEP` of all steps."""
    steps = [*STEPS, *NODES] if not embedding else [*EMBEDDING_STEPS]
    return [f"{when} {step}" for step in steps for when in ("before", "after")]


class Trap:
    """Does what the file says when this process comes by the place for the n-th time.

    The file is what `set_trap` makes; the first of all processes that gets there removes it. Counts
    begin anew with each file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = ""
        self._passed: Counter[str] = Counter()

    def pass_by(self, place: str) -> None:
        """Called at every place."""
        try:
            action, wanted, nth, number = self._file.read_text().split("\n")
        except FileNotFoundError:
            return
        if number != self._known:
            self._known = number
            self._passed.clear()
        self._passed[place] += 1
        if place != wanted or self._passed[place] < int(nth):
            return
        try:
            self._file.unlink()
        except FileNotFoundError:
            return  # another one was first
        os.kill(os.getpid(), signal.Signals[action])


def set_trap(file: Path, place: str, nth: int = 1, action: str = "SIGKILL") -> None:
    """Let the process that comes by the place for the n-th time send itself a signal."""
    new = file.with_suffix(".new")
    new.write_text(f"{action}\n{place}\n{nth}\n{uuid.uuid4()}")
    new.rename(file)


def watch(file: Path) -> None:
    """Put the trap at every place of this process."""
    trap = Trap(file)
    for step, function in {**STEPS, **EMBEDDING_STEPS}.items():
        _wrap(function, functools.partial(_passing, trap, step))
    _wrap("kb.ingestion.run:_Recorder.event", functools.partial(_at_nodes, trap))


def _wrap(function: str, wrapper: Callable[..., Any]) -> None:
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(inner, *args, **kwargs)

    setattr(owner, name, wrapped)


def _passing(trap: Trap, step: str, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    trap.pass_by(f"before {step}")
    result = inner(*args, **kwargs)
    if step not in _NOTHING_DONE or result:
        trap.pass_by(f"after {step}")
    return result


def _at_nodes(trap: Trap, inner: Callable[..., Any], recorder: Any, sink: Any, event: Any) -> Any:
    result = inner(recorder, sink, event)
    when = {"node_started": "before", "node_finished": "after"}.get(event.kind)
    if when and event.role in NODES:
        trap.pass_by(f"{when} {event.role}")
    return result
