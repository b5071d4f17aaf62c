"""Node, @node, RunContext: the plug-in point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from pipelines.errors import GraphError
from pipelines.ports import Chat, ChunkSink, Embedder

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class RunContext:
    """What a run lends its nodes; a node that misses something it needs says so clearly."""

    embedder: Embedder | None = None
    sink: ChunkSink | None = None
    chat: Chat | None = None
    limits: dict[str, int] = field(default_factory=dict)
    cancelled: Callable[[], bool] = lambda: False


class Node(BaseModel, Generic[In, Out]):
    """One step: its options are its fields, its work is `run`.

    Options are validated before anything runs; unknown options are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    kind: ClassVar[str] = ""

    @abstractmethod
    def run(self, value: In, ctx: RunContext) -> Out:
        """Do the work.

        Raises:
            NodeError: this value cannot be worked on; retrying changes nothing.
            TransientError: safe to retry.
        """

    @classmethod
    def takes(cls) -> Any:
        """The type of the value that `run` takes."""
        return _parameters(cls)[0]

    @classmethod
    def gives(cls) -> Any:
        """The type of the value that `run` returns."""
        return _parameters(cls)[1]


def _parameters(cls: type[Any]) -> tuple[Any, Any]:
    bound: dict[Any, Any] = {}  # type variables of generic classes between Node and `cls`
    for base in cls.__mro__:
        meta = getattr(base, "__pydantic_generic_metadata__", None)
        if not meta or meta["origin"] is None:
            continue
        args = [bound.get(arg, arg) for arg in meta["args"]]
        if meta["origin"] is Node and len(args) == 2:
            return args[0], args[1]
        parameters = meta["origin"].__pydantic_generic_metadata__["parameters"]
        bound.update(zip(parameters, args, strict=False))
    raise GraphError(
        f"node class {cls.__name__} does not say what it takes and gives: "
        f"derive it from Node[In, Out], for example Node[ParsedDocument, Chunked]"
    )


_KINDS: dict[str, type[Node[Any, Any]]] = {}
AnyNode = TypeVar("AnyNode", bound=type[Node[Any, Any]])


def node(kind: str) -> Callable[[AnyNode], AnyNode]:
    """Register a node class under `role.name` (the role is what the progress display shows)."""

    def register(cls: AnyNode) -> AnyNode:
        known = _KINDS.get(kind)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise GraphError(f"node kind {kind!r} is already taken by {known.__qualname__}")
        _parameters(cls)  # a class without types fails here, not in the first graph that uses it
        cls.kind = kind
        _KINDS[kind] = cls
        return cls

    return register


def node_kinds() -> dict[str, type[Node[Any, Any]]]:
    """Every known kind: the built-in ones and those of the entry-point group `kb.nodes`."""
    from pipelines import nodes  # registers the built-in kinds

    nodes.load_plugins()
    return dict(sorted(_KINDS.items()))


def node_class(kind: str) -> type[Node[Any, Any]]:
    """The class of a kind.

    Raises:
        GraphError: no such kind; the message lists the known ones.
    """
    kinds = node_kinds()
    if kind not in kinds:
        raise GraphError(f"no node kind {kind!r}; known kinds: {', '.join(kinds)}")
    return kinds[kind]
