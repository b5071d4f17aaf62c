"""A pipeline definition as data: what may stand in it, and its parameters filled in."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import GraphError, Problem

MAX_DEPTH = 40
"""Mappings and lists inside each other, in a definition or a parameter's value."""

_REFERENCE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_short = Repr()
_short.maxstring = _short.maxother = 80

P = TypeVar("P", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Parameter(_Part):
    """A value that whoever runs the pipeline may choose."""

    default: Any
    description: str = ""


class NodeSpec(_Part):
    """A node as written: `options` may hold references `${parameter}`."""

    id: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9_.-]+$")]
    kind: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_no_options(cls, raw: Any) -> Any:
        return (
            {**raw, "options": {}} if isinstance(raw, dict) and not raw.get("options", 1) else raw
        )


class Edge(_Part):
    """What `source` gives is what `target` takes; written `{from: a, to: b}` or `[a, b]`."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, raw: Any) -> Any:
        if isinstance(raw, list | tuple) and len(raw) == 2:
            return {"from": raw[0], "to": raw[1]}
        return raw

    def __str__(self) -> str:
        return f"edge {self.source!r} -> {self.target!r}"


class _Outline(_Part):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: str = ""
    parameters: dict[str, Any] = {}
    nodes: Annotated[list[Any], Field(min_length=1)]
    edges: list[Any] = []


@dataclass(frozen=True)
class Spec:
    """A definition whose parts have the right shape; whether they fit together is not known yet.

    Attributes:
        unreadable: ids of nodes that are there but have the wrong shape.
        has_all_edges: no edge that is there has the wrong shape.
    """

    name: str = ""
    description: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    nodes: tuple[NodeSpec, ...] = ()
    edges: tuple[Edge, ...] = ()
    unreadable: frozenset[str] = frozenset()
    has_all_edges: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The definition as JSON-like data, without what is default."""
        parts = {
            "parameters": {
                name: each.model_dump(exclude_defaults=True)
                for name, each in self.parameters.items()
            },
            "nodes": [node.model_dump(exclude_defaults=True) for node in self.nodes],
            "edges": [edge.model_dump(by_alias=True) for edge in self.edges],
        }
        head = {"name": self.name, "description": self.description}
        return {key: value for key, value in {**head, **parts}.items() if value}


def parse(document: object) -> tuple[Spec, list[Problem]]:
    """Read what can be read, and say what cannot.

    Raises:
        GraphError: not a mapping, or nested deeper than `MAX_DEPTH`: there is nothing to read.
    """
    if not isinstance(document, Mapping):
        raise GraphError(
            f"a pipeline definition is a mapping with name, nodes and edges, not {show(document)}"
        )
    check_depth(document)
    raw = {key: value for key, value in document.items() if value is not None}
    _, problems = _read(_Outline, {"": raw})
    written = {
        "parameters": {f"parameters.{key}": each for key, each in _like(dict, raw, "parameters")},
        "nodes": {f"nodes[{i}]": each for i, each in _like(list, raw, "nodes")},
        "edges": {f"edges[{i}]": each for i, each in _like(list, raw, "edges")},
    }
    parameters, in_parameters = _read(Parameter, written["parameters"])
    nodes, in_nodes = _read(NodeSpec, written["nodes"])
    edges, in_edges = _read(Edge, written["edges"])
    spec = Spec(
        name=str(raw.get("name", "")),
        description=str(raw.get("description", "")),
        parameters={key.removeprefix("parameters."): each for key, each in parameters.items()},
        nodes=tuple(nodes.values()),
        edges=tuple(edges.values()),
        unreadable=frozenset(
            str(each["id"])
            for where, each in written["nodes"].items()
            if where not in nodes and isinstance(each, Mapping) and "id" in each
        ),
        has_all_edges=not in_edges and isinstance(raw.get("edges", []), list),
    )
    return spec, [*problems, *in_parameters, *in_nodes, *in_edges]


def _like(shape: type[Any], raw: Mapping[Any, Any], key: str) -> list[tuple[Any, Any]]:
    value = raw.get(key)
    if not isinstance(value, shape):  # the outline has complained about it
        return []
    return list(value.items() if isinstance(value, dict) else enumerate(value))


def _read(model: type[P], written: Mapping[str, object]) -> tuple[dict[str, P], list[Problem]]:
    read: dict[str, P] = {}
    problems: list[Problem] = []
    for where, raw in written.items():
        try:
            read[where] = model.model_validate(raw)
        except ValidationError as exc:
            problems += [
                Problem(None, f"{where}.{at}".strip("."), why) for at, why in complaints(exc, model)
            ]
    return read, problems


def complaints(exc: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Each of pydantic's complaints as (field, what is wrong and what is allowed)."""
    known = ", ".join(each.alias or name for name, each in model.model_fields.items())
    for error in exc.errors(include_url=False, include_context=False):
        at = ".".join(map(str, error["loc"]))
        said = error["msg"].removeprefix("Value error, ")
        if error["type"] == "missing":
            yield at, "is required and missing"
        elif error["type"] == "extra_forbidden":
            hint = f"; known here: {known or 'nothing'}" if len(error["loc"]) == 1 else ""
            yield at, f"is not known{hint}"
        elif error["type"] == "model_type":
            yield at, f"{show(error['input'])} is not allowed: it should be a mapping of {known}"
        else:
            yield at, f"{show(error['input'])} is not allowed: {said[:1].lower()}{said[1:]}"


def parameter_values(
    parameters: Mapping[str, Parameter], given: Mapping[str, object]
) -> tuple[dict[str, Any], list[Problem]]:
    """Every parameter's value: the one that was given, otherwise the default.

    Raises:
        GraphError: a given value is nested deeper than `MAX_DEPTH`.
    """
    check_depth(given)
    values = {name: given.get(name, each.default) for name, each in parameters.items()}
    return values, [
        Problem(None, f"parameters.{name}", f"there is no such parameter; {_known(parameters)}")
        for name in given
        if name not in parameters
    ]


def fill_in(
    options: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The options with `${name}` replaced, and complaints as (option, what is wrong).

    A reference that is the whole value keeps the parameter's type; inside a longer text it becomes
    text; `$${name}` stands for the characters `${name}`.
    """
    filled: dict[str, Any] = {}
    wrong: list[tuple[str, str]] = []
    for option, value in options.items():
        found = [why for name, whole in references(value) if (why := _misuse(name, whole, values))]
        if found:
            wrong += [(option, why) for why in dict.fromkeys(found)]
        else:
            filled[option] = _filled(value, values)
    return filled, wrong


def references(value: object) -> Iterator[tuple[str, bool]]:
    """Each reference in a value as (parameter name, whether it is a whole value)."""
    if isinstance(value, str):
        for found in _REFERENCE.finditer(value):
            if not found[1]:
                yield found[2], found[0] == value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from references(each)


def _misuse(name: str, whole: bool, values: Mapping[str, Any]) -> str | None:
    if name not in values:
        return f"no parameter {name!r}; {_known(values)}"
    if not whole and not isinstance(values[name], str | int | float):
        return (
            f"parameter {name!r} is {show(values[name])}, which cannot stand inside a text; "
            f"make '${{{name}}}' the whole value"
        )
    return None


def show(value: object) -> str:
    """A value as an error message shows it, at most about 80 characters long."""
    return _short.repr(value)


def check_depth(value: object) -> None:
    """Refuse what is nested so deeply that walking it could exhaust the stack.

    Raises:
        GraphError: deeper than `MAX_DEPTH`.
    """
    pending = [(value, 0)]
    while pending:
        each, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise GraphError(f"the definition is nested deeper than {MAX_DEPTH} levels")
        if isinstance(each, Mapping):
            pending += [(inner, depth + 1) for inner in each.values()]
        elif isinstance(each, list | tuple):
            pending += [(inner, depth + 1) for inner in each]


def _known(names: Collection[str]) -> str:
    return f"known parameters: {', '.join(names)}" if names else "the definition has no parameters"


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(each, values) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, values) for each in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole and not whole[1]:
        return values[whole[2]]
    return _REFERENCE.sub(lambda found: found[0][1:] if found[1] else str(values[found[2]]), value)
