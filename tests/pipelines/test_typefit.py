"""Which outputs fit which inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, Optional, TypeVar, Union

import pytest

from pipelines.errors import GraphError
from pipelines.node import Node, RunContext, node
from pipelines.ports import Embedder
from pipelines.typefit import fits, is_a, type_name
from pipelines.types import Blob, Chunk, Chunked, Embeddable

T = TypeVar("T")
B = TypeVar("B", bound=Blob)


class BigBlob(Blob):
    """A subclass."""


@pytest.mark.parametrize(
    ("given", "taken", "expected"),
    [
        (Blob, Blob, True),
        (BigBlob, Blob, True),
        (Blob, BigBlob, False),
        (Blob, Chunked, False),
        (Chunked, Chunked | Embeddable, True),
        (Blob, Chunked | Embeddable, False),
        (Chunked | Embeddable, Embeddable | Chunked | None, True),
        (Chunked | Embeddable, Chunked, False),
        (None, Optional[Chunked], True),  # noqa: UP045
        (Chunked, Union[Chunked, Embeddable], True),  # noqa: UP007
        (list[Chunk], list[Chunk], True),
        (list[Chunk], Sequence[Chunk], True),
        (list[Chunk], list[Blob], False),
        (list[BigBlob], Sequence[Blob], True),
        (list[Chunk], list, True),
        (list, list[Chunk], True),
        (list[Chunk], tuple[Chunk, ...], False),
        (tuple[Chunk, ...], tuple[Chunk, ...], True),
        (tuple[Chunk, ...], tuple[Blob, ...], False),
        (dict[str, int], Mapping[str, int], True),
        (dict[str, int], Mapping[str, str], False),
        (Annotated[Blob, "big"], Blob, True),
        (Any, Blob, True),
        (Blob, Any, True),
        (Blob, object, True),
        (Blob, T, True),
        (Chunked, B, False),
        (Blob, Embedder, True),  # a protocol: not known before the run
    ],
)
def test_an_output_fits_an_input(given: Any, taken: Any, expected: bool) -> None:
    assert fits(given, taken) is expected


@pytest.mark.parametrize(
    ("value", "taken", "expected"),
    [
        (BigBlob(b"", "a"), Blob, True),
        (Blob(b"", "a"), BigBlob, False),
        (Chunked(()), Chunked | Embeddable, True),
        (3, Chunked | Embeddable, False),
        ([1], list[str], True),  # elements are not looked at
        ((1,), list[int], False),
        (None, Chunked | None, True),
        (3, Any, True),
        (3, T, True),
        (3, Embedder, True),
    ],
)
def test_a_value_fits_an_input(value: object, taken: Any, expected: bool) -> None:
    assert is_a(value, taken) is expected


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (Chunked | Embeddable, "Chunked | Embeddable"),
        (Optional[Chunked], "Chunked | None"),  # noqa: UP045
        (list[Chunk | None], "list[Chunk | None]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Any, "Any"),
    ],
)
def test_a_type_is_written_as_a_person_would(of: Any, expected: str) -> None:
    assert type_name(of) == expected


class Pass(Node[T, T], Generic[T]):
    """A generic node."""

    def run(self, value: T, ctx: RunContext) -> T:
        return value


class Read(Node[Blob, T], Generic[T]):
    """Generic in what it gives."""

    read: Callable[[Blob], Any] = repr

    def run(self, value: Blob, ctx: RunContext) -> T:
        result: T = self.read(value)
        return result


class PassChunks(Pass[Chunked]):
    """Says at last what it takes."""


class ReadChunks(Read[Chunked]):
    """Says at last what it gives."""


class ReadMoreChunks(ReadChunks):
    """Says nothing new."""


@pytest.mark.parametrize(
    ("cls", "takes", "gives"),
    [
        (PassChunks, Chunked, Chunked),
        (ReadChunks, Blob, Chunked),
        (ReadMoreChunks, Blob, Chunked),
    ],
)
def test_a_node_knows_its_types_through_generic_base_classes(
    cls: type[Node[Any, Any]], takes: Any, gives: Any
) -> None:
    assert (cls.takes(), cls.gives()) == (takes, gives)


def test_a_node_without_types_is_refused_when_it_is_registered() -> None:
    class Untyped(Node):  # type: ignore[type-arg]
        def run(self, value: Any, ctx: RunContext) -> Any:
            return value

    with pytest.raises(GraphError, match=r"Untyped does not say what it takes .* Node\[In, Out\]"):
        node("untyped")(Untyped)
