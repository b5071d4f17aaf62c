"""Running a graph: order, events, timing, resuming, cancelling, and how failures come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine import EventKind, RunEvent, run
from pipelines.errors import Cancelled, ExtractionError, GraphError, NodeError, TransientError
from pipelines.graph import Graph
from pipelines.node import RunContext
from pipelines.types import Blob, Chunked, ParsedDocument
from tests.pipelines.nodes_for_tests import KINDS

BLOB = Blob(b"one two three", "words.txt")
Action = Callable[[RunContext], object]


def graph(*nodes: tuple[str, str], action: Action = id, **edges: str) -> Graph:
    """A chain of (id, kind); `edges` adds target=source. `action` is what `call` nodes do."""
    ids = [node_id for node_id, _ in nodes]
    chained = [[a, b] for a, b in pairwise(ids) if b not in edges]
    options = {"call": {"action": action}}
    document = {
        "name": "words",
        "nodes": [{"id": i, "kind": k, "options": options.get(k, {})} for i, k in nodes],
        "edges": chained + [[source, target] for target, source in edges.items()],
    }
    return Graph.from_dict(document, kinds=KINDS)


WORDS = graph(
    ("read", "extract.decode"), ("clean", "clean.upper"), ("chunk", "chunk.words"),
    ("count", "count"),
)  # fmt: skip


def calling(action: Action) -> Graph:
    return graph(("read", "extract.decode"), ("call", "call"), ("count", "count"), action=action)


def raising(exc: BaseException) -> Graph:
    def action(ctx: RunContext) -> None:
        raise exc

    return calling(action)


def story(events: list[RunEvent]) -> list[tuple[str, str | None]]:
    return [(event.kind, event.node_id) for event in events]


def failing(graph: Graph, expected: type[BaseException]) -> tuple[BaseException, list[RunEvent]]:
    events: list[RunEvent] = []
    with pytest.raises(expected) as caught:
        run(graph, BLOB, RunContext(), on_event=events.append)
    return caught.value, events


def test_the_value_flows_through_the_nodes_in_order() -> None:
    result = run(WORDS, BLOB, RunContext())
    assert result.output == 3
    assert result.outputs == {"count": 3}
    assert [(t.node_id, t.kind) for t in result.timings] == [
        ("read", "extract.decode"),
        ("clean", "clean.upper"),
        ("chunk", "chunk.words"),
        ("count", "count"),
    ]


def test_every_leaf_gives_a_result() -> None:
    tree = graph(
        ("read", "extract.decode"), ("chunk", "chunk.words"), ("count", "count"),
        ("pages", "count"), pages="read",
    )  # fmt: skip
    result = run(tree, BLOB, RunContext())
    assert result.outputs == {"count": 3, "pages": 1}
    with pytest.raises(GraphError, match="several results"):
        _ = result.output
    assert run(tree, ParsedDocument("a b"), RunContext(), start="chunk").outputs == {"count": 2}


def test_events_tell_the_run_as_it_happens() -> None:
    events: list[RunEvent] = []
    run(WORDS, BLOB, RunContext(), on_event=events.append)
    assert story(events) == [
        ("run_started", "read"),
        ("node_started", "read"),
        ("node_finished", "read"),
        ("node_started", "clean"),
        ("node_finished", "clean"),
        ("node_started", "chunk"),
        ("node_finished", "chunk"),
        ("node_started", "count"),
        ("node_finished", "count"),
        ("run_finished", None),
    ]
    started = events[5]
    assert (started.pipeline, started.node_kind, started.role) == ("words", "chunk.words", "chunk")
    assert (started.step, started.steps, started.elapsed_s) == (3, 4, 0.0)
    assert (started.error_code, started.message) == (None, None)
    times = [event.at_s for event in events]
    assert times == sorted(times)


def test_a_node_is_timed_without_what_the_listener_takes() -> None:
    events: list[RunEvent] = []

    def slow_listener(event: RunEvent) -> None:
        events.append(event)
        time.sleep(0.02)

    result = run(calling(lambda ctx: time.sleep(0.05)), BLOB, RunContext(), on_event=slow_listener)
    seconds = {timing.node_id: timing.seconds for timing in result.timings}
    assert seconds["call"] >= 0.05
    assert 0 < sum(seconds.values()) <= result.seconds - len(events) * 0.02
    finished = {e.node_id: e.elapsed_s for e in events if e.kind is EventKind.NODE_FINISHED}
    assert finished == seconds
    assert events[-2].at_s - events[0].at_s <= events[-1].elapsed_s <= result.seconds


@given(st.text(alphabet="ab \n", max_size=30), st.integers(0, 3))
def test_a_run_from_the_middle_is_the_tail_of_the_whole_run(text: str, skipped: int) -> None:
    seen: list[object] = []
    whole_events: list[RunEvent] = []
    tail_events: list[RunEvent] = []
    value: object = Blob(text.encode(), "t.txt")
    for node_id in WORDS.order[:skipped]:  # what a checkpoint would have kept
        value = WORDS.nodes[node_id].run(value, RunContext())
        seen.append(value)
    whole = run(WORDS, Blob(text.encode(), "t.txt"), RunContext(), on_event=whole_events.append)
    start = WORDS.order[skipped]
    tail = run(WORDS, value, RunContext(), start=start, on_event=tail_events.append)
    assert tail.outputs == whole.outputs
    assert [t.node_id for t in tail.timings] == [t.node_id for t in whole.timings][skipped:]
    assert story(tail_events)[1:] == story(whole_events)[1 + 2 * skipped :]
    assert [(e.step, e.steps) for e in tail_events[1:3]] == [(1, 4 - skipped)] * 2


@pytest.mark.parametrize(
    ("value", "start", "message"),
    [
        (
            "text",
            None,
            r"node 'read' \(extract.decode\) takes Blob, "
            "so the run cannot begin there with a value of type str",
        ),
        (BLOB, "count", r"takes Chunked \| ParsedDocument, .* of type Blob"),
        (Chunked(()), "end", "no node 'end' in pipeline 'words'; nodes: read, clean, chunk, count"),
    ],
)
def test_a_run_that_cannot_begin_says_why_before_anything_runs(
    value: object, start: str | None, message: str
) -> None:
    events: list[RunEvent] = []
    with pytest.raises(GraphError, match=message):
        run(WORDS, value, RunContext(), start=start, on_event=events.append)
    assert events == []


# --- failures


def test_a_pipeline_error_comes_out_unchanged_and_knows_its_node() -> None:
    error = ExtractionError("page 3 is encrypted", code="encrypted")
    caught, events = failing(raising(error), ExtractionError)
    assert caught is error
    assert str(error) == "page 3 is encrypted"
    assert (error.code, error.node_id, error.kind) == ("encrypted", "call", "call")
    assert story(events)[-2:] == [("node_failed", "call"), ("run_failed", "call")]
    assert [(e.error_code, e.message) for e in events[-2:]] == [
        ("encrypted", "page 3 is encrypted")
    ] * 2


def test_what_is_safe_to_retry_stays_so() -> None:
    error = TransientError("busy", retry_after_s=7)
    caught, _ = failing(raising(error), TransientError)
    assert caught is error
    assert error.retry_after_s == 7
    assert error.node_id == "call"


def test_an_unforeseen_exception_becomes_a_node_error_with_its_cause() -> None:
    error = ValueError("bad byte")
    caught, events = failing(raising(error), NodeError)
    assert isinstance(caught, NodeError)
    assert str(caught) == "node 'call' (call) failed: ValueError: bad byte"
    assert caught.__cause__ is error
    assert (caught.code, caught.node_id, caught.kind) == ("node_failed", "call", "call")
    assert events[-1].error_code == "node_failed"


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_no_node_can_help_passes_through(error: BaseException) -> None:
    caught, events = failing(raising(error), type(error))
    assert caught is error
    assert story(events)[-1] == ("node_started", "call")


def test_a_node_that_gives_something_else_than_it_says_is_found_at_once() -> None:
    lying = graph(("read", "extract.decode"), ("lie", "lie"), ("count", "count"))
    caught, _ = failing(lying, NodeError)
    assert str(caught) == "node 'lie' (lie) gave a value of type str instead of Chunked"
    assert isinstance(caught, NodeError)
    assert caught.node_id == "lie"


def test_the_innermost_node_is_named_when_a_node_runs_a_graph() -> None:
    inner = graph(("inner", "call"), action=partial(_raise, NodeError("no")))
    outer = calling(lambda ctx: run(inner, ParsedDocument(""), ctx))
    caught, events = failing(outer, NodeError)
    assert isinstance(caught, NodeError)
    assert caught.node_id == "inner"
    assert events[-1].node_id == "call"


def _raise(exc: BaseException, ctx: RunContext) -> None:
    raise exc


# --- stopping


@pytest.mark.parametrize("after", range(4))
def test_a_cancelled_run_stops_before_the_next_node(after: int) -> None:
    events: list[RunEvent] = []

    def cancelled() -> bool:
        return sum(event.kind is EventKind.NODE_FINISHED for event in events) >= after

    with pytest.raises(Cancelled) as caught:
        run(WORDS, BLOB, RunContext(cancelled=cancelled), on_event=events.append)
    assert caught.value.code == "cancelled"
    assert caught.value.node_id == WORDS.order[after]
    assert story(events)[-1] == ("run_cancelled", WORDS.order[after])
    assert len(events) == 1 + 2 * after + 1
    assert events[-1].error_code == "cancelled"


def test_a_run_whose_last_node_is_done_is_not_cancelled_any_more() -> None:
    done: list[int] = []
    finishing = graph(("call", "call"), action=lambda ctx: done.append(1))
    result = run(finishing, ParsedDocument("x"), RunContext(cancelled=lambda: bool(done)))
    assert result.output == ParsedDocument("x")


def test_a_node_may_stop_for_the_cancellation_itself() -> None:
    _, events = failing(raising(Cancelled("stopped in the middle")), Cancelled)
    assert story(events)[-2:] == [("node_failed", "call"), ("run_cancelled", "call")]


class LostLease(Exception):
    pass


@pytest.mark.parametrize("kind", [k for k in EventKind if k is not EventKind.RUN_CANCELLED])
@pytest.mark.parametrize("error", [LostLease("gone"), NodeError("gone"), Cancelled("gone")])
def test_an_exception_of_the_listener_ends_the_run_as_it_is(
    kind: EventKind, error: Exception
) -> None:
    events: list[RunEvent] = []

    def listener(event: RunEvent) -> None:
        events.append(event)
        if event.kind is kind:
            raise error

    fails = kind in (EventKind.NODE_FAILED, EventKind.RUN_FAILED)
    running = raising(ValueError("x")) if fails else WORDS
    with pytest.raises(type(error)) as caught:
        run(running, BLOB, RunContext(), on_event=listener)
    assert caught.value is error
    assert getattr(error, "node_id", None) is None
    assert events[-1].kind is kind
