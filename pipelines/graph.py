"""Graph: a pipeline definition whose nodes are known, configured and fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import islice, pairwise
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from pipelines import safe_yaml, spec
from pipelines.errors import GraphError, Problem
from pipelines.node import Node, node_kinds
from pipelines.spec import Edge, NodeSpec, Parameter, Spec
from pipelines.typefit import fits, type_name

Kinds = Mapping[str, type[Node[Any, Any]]]

MAX_BYTES = 1_000_000
_LISTED = 20  # names in a problem, problems in a message, loops looked for: enough to work on


@dataclass(frozen=True)
class Graph:
    """Nodes and the edges between them, checked: what can be told before a run has been told.

    A graph has one start; every other node takes the value of exactly one node, so a graph is a
    chain or a tree, and each leaf gives a result.

    Attributes:
        spec: the definition, with the parameter values in force as defaults.
        nodes: id -> configured node, in the order of the definition.
        order: every id once, each after the node that feeds it.
    """

    spec: Spec
    nodes: Mapping[str, Node[Any, Any]]
    order: tuple[str, ...]

    @classmethod
    def from_yaml(
        cls,
        text: str,
        parameters: Mapping[str, object] | None = None,
        *,
        kinds: Kinds | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> Graph:
        """Read and check a definition.

        Args:
            parameters: values instead of the definition's defaults.
            kinds: the node kinds that may be used; None means every known one.
            max_bytes: of the text in UTF-8.
        Raises:
            GraphError: it cannot run; `problems` has everything that was found.
        """
        document = safe_yaml.load(text, max_bytes=max_bytes, max_depth=spec.MAX_DEPTH)
        return cls.from_dict(document, parameters, kinds=kinds)

    @classmethod
    def from_dict(
        cls,
        document: object,
        parameters: Mapping[str, object] | None = None,
        *,
        kinds: Kinds | None = None,
    ) -> Graph:
        """Check a definition given as data: what `from_yaml` reads, and `to_dict` writes.

        Raises:
            GraphError: it cannot run; `problems` has everything that was found.
        """
        known = node_kinds() if kinds is None else kinds
        draft, problems = spec.parse(document)
        draft = deepcopy(draft)  # the caller's lists and mappings stay the caller's
        values, unknown = spec.parameter_values(draft.parameters, parameters or {})
        nodes, misconfigured = _configured(draft, values, known)
        problems += [*unknown, *_unused(draft), *misconfigured]
        ids = dict.fromkeys([*(node.id for node in draft.nodes), *sorted(draft.unreadable)])
        problems += [*_id_problems(draft), *_edge_problems(draft.edges, ids)]
        edges = [e for e in dict.fromkeys(draft.edges) if e.source in ids and e.target in ids]
        problems += [*_crossings(ids, edges), *_misfits(draft.nodes, edges, known)]
        if draft.has_all_edges:
            problems += _strays(ids, edges)
        if problems:
            raise _refusal(draft.name, problems)
        return cls(
            spec=replace(draft, parameters=_in_force(draft.parameters, values)),
            nodes=MappingProxyType(nodes),
            order=tuple(_sorter(ids, edges).static_order()),
        )

    def to_dict(self) -> dict[str, Any]:
        """The definition as JSON-like data; `from_dict` makes an equal graph of it."""
        return self.spec.to_dict()

    @property
    def name(self) -> str:
        """As the definition has it."""
        return self.spec.name

    @property
    def description(self) -> str:
        """As the definition has it; may be empty."""
        return self.spec.description

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Name -> parameter; its default is the value in force."""
        return self.spec.parameters

    @property
    def edges(self) -> tuple[Edge, ...]:
        """In the order of the definition."""
        return self.spec.edges

    @property
    def start(self) -> str:
        """The one node that takes the run's value."""
        return self.order[0]

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The nodes whose values are the run's results, in running order."""
        return tuple(node_id for node_id in self.order if not self._targets[node_id])

    @cached_property
    def _inputs(self) -> Mapping[str, tuple[str, ...]]:
        inputs: dict[str, tuple[str, ...]] = dict.fromkeys(self.nodes, ())
        for edge in self.edges:
            inputs[edge.target] += (edge.source,)
        return inputs

    def inputs(self, node_id: str) -> tuple[str, ...]:
        """The nodes whose values this node takes; empty for the start."""
        self._check_id(node_id)
        return self._inputs[node_id]

    @cached_property
    def _targets(self) -> Mapping[str, tuple[str, ...]]:
        targets: dict[str, tuple[str, ...]] = dict.fromkeys(self.nodes, ())
        for edge in self.edges:
            targets[edge.source] += (edge.target,)
        return targets

    def targets(self, node_id: str) -> tuple[str, ...]:
        """The nodes that take this node's value; empty for a leaf."""
        self._check_id(node_id)
        return self._targets[node_id]

    def onward(self, node_id: str) -> tuple[str, ...]:
        """This node and every node that its value reaches, in running order."""
        self._check_id(node_id)
        reached = {node_id}
        for each in self.order:
            if reached.intersection(self._inputs[each]):
                reached.add(each)
        return tuple(each for each in self.order if each in reached)

    def kind(self, node_id: str) -> str:
        """The kind under which the node was registered."""
        self._check_id(node_id)
        return self.nodes[node_id].kind

    def role(self, node_id: str) -> str:
        """What the node is for: its kind up to the dot (extract, clean, chunk, embed, index)."""
        return self.kind(node_id).partition(".")[0]

    def _check_id(self, node_id: str) -> None:
        if node_id not in self.nodes:
            raise GraphError(
                f"no node {node_id!r} in pipeline {self.name!r}; nodes: {_names(self.nodes)}"
            )


def _configured(
    draft: Spec, values: Mapping[str, Any], known: Kinds
) -> tuple[dict[str, Node[Any, Any]], list[Problem]]:
    nodes: dict[str, Node[Any, Any]] = {}
    problems: list[Problem] = []
    for each in draft.nodes:
        kind = known.get(each.kind)
        options, wrong = spec.fill_in(each.options, values)
        if kind is None:
            why = f"no node kind {each.kind!r}; known kinds: {', '.join(known)}"
            problems.append(Problem(each.id, "kind", why))
        elif not wrong:
            try:
                nodes[each.id] = kind.model_validate(options)
            except ValidationError as exc:
                wrong = [
                    (at, why + _source_of(at, each.options))
                    for at, why in spec.complaints(exc, kind)
                ]
        problems += [Problem(each.id, f"options.{at}".rstrip("."), why) for at, why in wrong]
    return nodes, problems


def _source_of(at: str, options: Mapping[str, Any]) -> str:
    names = dict.fromkeys(n for n, _ in spec.references(options.get(at.partition(".")[0])))
    return f" (from parameter {', '.join(map(repr, names))})" if names else ""


def _unused(draft: Spec) -> Iterator[Problem]:
    used = {name for each in draft.nodes for name, _ in spec.references(each.options)}
    if draft.unreadable:  # it may be used there
        return
    for name in draft.parameters:
        if name not in used:
            why = f"no option uses it; remove it or write '${{{name}}}' as an option's value"
            yield Problem(None, f"parameters.{name}", why)


def _in_force(
    parameters: Mapping[str, Parameter], values: Mapping[str, Any]
) -> dict[str, Parameter]:
    return {
        name: each.model_copy(update={"default": deepcopy(values[name])})
        for name, each in parameters.items()
    }


def _id_problems(draft: Spec) -> Iterator[Problem]:
    for node_id, times in Counter(each.id for each in draft.nodes).items():
        times += node_id in draft.unreadable
        if times > 1:
            yield Problem(node_id, "id", f"{times} nodes have this id; give each its own")


def _edge_problems(edges: Sequence[Edge], ids: Collection[str]) -> Iterator[Problem]:
    known = _names(ids)
    for edge, times in Counter(edges).items():
        for node_id in dict.fromkeys((edge.source, edge.target)):
            if node_id not in ids:
                why = f"no node {node_id!r}; nodes: {known}"
                yield Problem(None, str(edge), why)
        if times > 1:
            yield Problem(None, str(edge), f"is there {times} times; once is enough")


def _crossings(ids: Collection[str], edges: Sequence[Edge]) -> Iterator[Problem]:
    sources: dict[str, list[str]] = {node_id: [] for node_id in ids}
    for edge in edges:
        sources[edge.target].append(edge.source)
    for node_id, several in sources.items():
        if len(several) > 1:
            why = (
                f"{len(several)} edges lead here, from {_names(map(repr, several))}; "
                "a node takes one value, and joining is not supported: keep one of the edges"
            )
            yield Problem(node_id, "edges", why)
    for loop in _loops(ids, edges):
        why = f"the edges run in a loop: {_names(loop, ' -> ')}; remove one of them"
        yield Problem(loop[0], "edges", why)


def _strays(ids: Collection[str], edges: Sequence[Edge]) -> Iterator[Problem]:
    fed, feeding = {edge.target for edge in edges}, {edge.source for edge in edges}
    roots = [node_id for node_id in ids if node_id not in fed]
    start = next((root for root in roots if root in feeding), roots[0] if roots else None)
    for root in roots:
        if root != start:
            why = (
                f"no edge leads here, and the pipeline starts at {start!r}; "
                f"add an edge to {root!r} or remove the node"
            )
            yield Problem(root, "edges", why)


def _loops(ids: Collection[str], edges: Sequence[Edge]) -> Iterator[list[str]]:
    """Loops without common edges, each with its first node repeated at the end."""
    left = list(edges)
    for _ in range(_LISTED):
        try:
            _sorter(ids, left).prepare()
        except CycleError as exc:
            loop: list[str] = exc.args[1]
            yield loop
            taken = set(pairwise(loop))
            left = [edge for edge in left if (edge.source, edge.target) not in taken]
        else:
            return


def _sorter(ids: Collection[str], edges: Sequence[Edge]) -> TopologicalSorter[str]:
    sorter = TopologicalSorter[str](dict.fromkeys(ids, ()))
    for edge in edges:
        sorter.add(edge.target, edge.source)
    return sorter


def _misfits(nodes: Sequence[NodeSpec], edges: Sequence[Edge], known: Kinds) -> Iterator[Problem]:
    classes = {each.id: known[each.kind] for each in nodes if each.kind in known}
    for edge in edges:
        source, target = classes.get(edge.source), classes.get(edge.target)
        if source is None or target is None or fits(source.gives(), target.takes()):
            continue
        between = [
            name
            for name, kind in known.items()
            if fits(source.gives(), kind.takes()) and fits(kind.gives(), target.takes())
        ]
        hint = f"put one of these between: {', '.join(between)}" if between else "remove the edge"
        why = (
            f"{edge.target!r} ({target.kind}) takes {type_name(target.takes())}, but "
            f"{edge.source!r} ({source.kind}) gives {type_name(source.gives())}; {hint}"
        )
        yield Problem(edge.target, str(edge), why)


def _names(names: Iterable[str], separator: str = ", ") -> str:
    rest = iter(names)
    shown = separator.join(islice(rest, _LISTED))
    return f"{shown} and {more} more" if (more := sum(1 for _ in rest)) else shown


def _refusal(name: str, problems: Sequence[Problem]) -> GraphError:
    pipeline = f"pipeline {name!r}" if name else "the pipeline"
    if len(problems) == 1:
        return GraphError(f"{pipeline} cannot run: {problems[0]}", problems=problems)
    listed = [f"- {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        listed.append(f"- and {len(problems) - _LISTED} more")
    headline = f"{pipeline} cannot run, {len(problems)} problems:"
    return GraphError("\n".join([headline, *listed]), problems=problems)
