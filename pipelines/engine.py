"""The engine: runs a graph node by node, times every step and says what happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import Any

from pipelines.errors import Cancelled, GraphError, NodeError, PipelineError
from pipelines.graph import Graph
from pipelines.node import Node, RunContext
from pipelines.typefit import is_a, type_name


class EventKind(StrEnum):
    """What a run reports. Every run ends with exactly one of run finished, failed, cancelled."""

    RUN_STARTED = "run_started"
    RUN_FINISHED = "run_finished"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    NODE_STARTED = "node_started"
    NODE_FINISHED = "node_finished"
    NODE_FAILED = "node_failed"


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One thing that happened in a run.

    Attributes:
        kind: what happened.
        pipeline: the graph's name.
        at_s: when, on the clock of `time.perf_counter`; never goes back.
        elapsed_s: since the run or the node started; 0 for the start events.
        node_id, node_kind, role: the node; for `run_started` the node where the run begins, for
            `run_cancelled` the one that was not run; None for `run_finished`.
        step, steps: the node's place in this run, from 1, and how many nodes the run has.
        error_code, message: why, for failed and cancelled.
    """

    kind: EventKind
    pipeline: str
    at_s: float
    elapsed_s: float
    node_id: str | None
    node_kind: str | None
    role: str | None
    step: int
    steps: int
    error_code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class NodeTiming:
    """How long one node worked."""

    node_id: str
    kind: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        outputs: leaf id -> its value, in running order; warnings are inside the values.
        timings: of every node that ran, in running order.
        seconds: the whole run, with what the listeners took.
    """

    outputs: Mapping[str, Any]
    timings: tuple[NodeTiming, ...]
    seconds: float

    @property
    def output(self) -> Any:
        """The value of the only leaf.

        Raises:
            GraphError: the graph has several leaves; ask `outputs` for one.
        """
        if len(self.outputs) != 1:
            raise GraphError(f"the run has several results: {', '.join(self.outputs)}")
        return next(iter(self.outputs.values()))


def run(
    graph: Graph,
    value: object,
    ctx: RunContext,
    *,
    start: str | None = None,
    on_event: Callable[[RunEvent], None] | None = None,
) -> RunResult:
    """Run a graph on one value, in this thread.

    Args:
        value: what the first node takes.
        start: begin at this node, with `value` as its input: only it and what comes after it run.
            That is how a run goes on after a checkpoint.
        on_event: told of every step before the next one begins. An exception from it ends the run
            at once and comes out as it is, without further events.
    Raises:
        GraphError: no node `start`, or `value` is not what it takes; nothing has run.
        Cancelled: `ctx.cancelled()` was true before a node, or a node stopped for that reason.
        NodeError: a node cannot work on its value, or failed in a way it did not foresee
            (chained); retrying changes nothing.
        TransientError: safe to retry.

    Every PipelineError carries `node_id` and `kind`. MemoryError and what is not an Exception pass
    through without an event.
    """
    begin = graph.start if start is None else start
    order = graph.onward(begin)
    if not is_a(value, graph.nodes[begin].takes()):
        raise _misfit(graph, begin, value)
    tell = _Teller(graph, order, on_event)
    tell(EventKind.RUN_STARTED, begin)
    timings: list[NodeTiming] = []
    inputs = {begin: value}
    outputs: dict[str, Any] = {}
    for node_id in order:
        if ctx.cancelled():
            cancelled = _marked(Cancelled("the run was cancelled"), node_id, graph.kind(node_id))
            tell(EventKind.RUN_CANCELLED, node_id, tell.elapsed_s(), cancelled)
            raise cancelled
        tell(EventKind.NODE_STARTED, node_id)
        began = perf_counter()
        try:
            given = _work(graph.nodes[node_id], node_id, inputs.pop(node_id), ctx)
        except PipelineError as exc:
            _marked(exc, node_id, graph.kind(node_id))
            tell(EventKind.NODE_FAILED, node_id, perf_counter() - began, exc)
            ending = EventKind.RUN_CANCELLED if isinstance(exc, Cancelled) else EventKind.RUN_FAILED
            tell(ending, node_id, tell.elapsed_s(), exc)
            raise
        seconds = perf_counter() - began
        timings.append(NodeTiming(node_id, graph.kind(node_id), seconds))
        tell(EventKind.NODE_FINISHED, node_id, seconds)
        targets = graph.targets(node_id)
        inputs.update(dict.fromkeys(targets, given))
        if not targets:
            outputs[node_id] = given
    tell(EventKind.RUN_FINISHED, None, tell.elapsed_s())
    return RunResult(outputs, tuple(timings), tell.elapsed_s())


def _work(node: Node[Any, Any], node_id: str, value: object, ctx: RunContext) -> object:
    try:
        given = node.run(value, ctx)
    except (PipelineError, MemoryError):
        raise
    except Exception as exc:
        raise NodeError(
            f"node {node_id!r} ({node.kind}) failed: {type(exc).__name__}: {exc}"
        ) from exc
    if not is_a(given, node.gives()):
        raise NodeError(
            f"node {node_id!r} ({node.kind}) gave a value of type {type(given).__name__} "
            f"instead of {type_name(node.gives())}"
        )
    return given


def _marked(exc: PipelineError, node_id: str, kind: str) -> PipelineError:
    if exc.node_id is None:  # a node may run a graph of its own; the innermost node is the one
        exc.node_id, exc.kind = node_id, kind
        exc.add_note(f"in node {node_id!r} ({kind})")
    return exc


def _misfit(graph: Graph, node_id: str, value: object) -> GraphError:
    takes = type_name(graph.nodes[node_id].takes())
    return GraphError(
        f"node {node_id!r} ({graph.kind(node_id)}) takes {takes}, "
        f"so the run cannot begin there with a value of type {type(value).__name__}"
    )


class _Teller:
    """Makes the events of one run."""

    def __init__(
        self, graph: Graph, order: Sequence[str], on_event: Callable[[RunEvent], None] | None
    ) -> None:
        self._graph = graph
        self._steps = {node_id: step for step, node_id in enumerate(order, start=1)}
        self._on_event = on_event
        self._began = perf_counter()

    def elapsed_s(self) -> float:
        return perf_counter() - self._began

    def __call__(
        self,
        kind: EventKind,
        node_id: str | None,
        elapsed_s: float = 0.0,
        error: PipelineError | None = None,
    ) -> None:
        if self._on_event is None:
            return
        self._on_event(
            RunEvent(
                kind=kind,
                pipeline=self._graph.name,
                at_s=perf_counter(),
                elapsed_s=elapsed_s,
                node_id=node_id,
                node_kind=self._graph.kind(node_id) if node_id is not None else None,
                role=self._graph.role(node_id) if node_id is not None else None,
                step=self._steps[node_id] if node_id is not None else len(self._steps),
                steps=len(self._steps),
                error_code=error.code if error else None,
                message=error.message if error else None,
            )
        )
