"""What a definition may say, and what is said about one that cannot run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import spec
from pipelines.definitions import definition, definitions
from pipelines.errors import GraphError
from pipelines.graph import Graph
from pipelines.node import node_kinds
from tests.pipelines.nodes_for_tests import KINDS, Words

NODES = """
name: words
description: Counts words.
parameters:
  longest: {default: 7, description: The longest word.}
  cut: {default: " "}
nodes:
  - {id: read, kind: extract.decode}
  - {id: chunk, kind: chunk.words, options: {max_chars: "${longest}", separator: "${cut}"}}
  - {id: count, kind: count}
"""
WORDS = NODES + "edges: [{from: read, to: chunk}, [chunk, count]]"


def graph(text: str = WORDS, parameters: Mapping[str, object] | None = None) -> Graph:
    return Graph.from_yaml(text, parameters, kinds=KINDS)


def problems(text: str, parameters: Mapping[str, object] | None = None) -> list[str]:
    with pytest.raises(GraphError) as caught:
        graph(text, parameters)
    assert caught.value.code == "invalid_pipeline"
    assert all(str(each) in str(caught.value) for each in caught.value.problems)
    return [str(each) for each in caught.value.problems]


def chain(*kinds: str) -> dict[str, Any]:
    ids = [f"n{i}" for i in range(len(kinds))]
    return {
        "name": "chain",
        "nodes": [{"id": i, "kind": kind} for i, kind in zip(ids, kinds, strict=True)],
        "edges": [list(pair) for pair in pairwise(ids)],
    }


def chunker(graph: Graph) -> Words:
    node = graph.nodes["chunk"]
    assert isinstance(node, Words)
    return node


def test_a_graph_knows_its_start_order_leaves_and_roles() -> None:
    words = graph()
    assert (words.name, words.description) == ("words", "Counts words.")
    assert words.start == "read"
    assert words.order == ("read", "chunk", "count")
    assert words.leaves == ("count",)
    assert [words.role(each) for each in words.order] == ["extract", "chunk", "count"]
    assert words.kind("chunk") == "chunk.words"
    assert [(e.source, e.target) for e in words.edges] == [("read", "chunk"), ("chunk", "count")]
    assert (words.inputs("chunk"), words.inputs("read")) == (("read",), ())
    assert (words.targets("chunk"), words.targets("count")) == (("count",), ())


def test_the_order_follows_the_edges_not_the_list() -> None:
    backwards = {"name": "b", **chain("extract.decode", "chunk.words", "count")}
    backwards["nodes"].reverse()
    assert Graph.from_dict(backwards, kinds=KINDS).order == ("n0", "n1", "n2")


def test_a_tree_may_have_several_leaves() -> None:
    tree = chain("extract.decode", "chunk.words", "count")
    tree["nodes"].append({"id": "pages", "kind": "count"})
    tree["edges"].append({"from": "n0", "to": "pages"})
    built = Graph.from_dict(tree, kinds=KINDS)
    assert set(built.leaves) == {"n2", "pages"}
    assert built.onward("n1") == ("n1", "n2")
    assert set(built.onward("n0")) == {"n0", "n1", "n2", "pages"}


def test_one_node_alone_is_a_graph() -> None:
    alone = graph("{name: alone, nodes: [{id: read, kind: extract.decode, options: }]}")
    assert alone.order == alone.leaves == ("read",)


def test_an_unknown_node_is_named_with_those_there_are() -> None:
    with pytest.raises(GraphError, match="no node 'chnk' in pipeline 'words'; nodes: read, chunk"):
        graph().role("chnk")


# --- parameters


def test_parameters_have_defaults_and_keep_their_type() -> None:
    assert chunker(graph()).max_chars == 7
    assert chunker(graph(parameters={"longest": 9, "cut": "。"})).max_chars == 9
    assert chunker(graph(parameters={"longest": 9, "cut": "。"})).separator == "。"


@pytest.mark.parametrize(
    ("written", "value", "expected"),
    [
        ("${cut}", "|", "|"),
        ("<${cut}>", "|", "<|>"),
        ("${cut}${cut}", 3, "33"),
        ("$${cut}${cut}", "|", "${cut}|"),
        ("$${cut}", "|", "${cut}"),
        ("$cut {cut} $", "|", None),
    ],
)
def test_a_reference_may_stand_inside_a_text_and_be_escaped(
    written: str, value: object, expected: str | None
) -> None:
    options: Mapping[str, Any] = {"o": written, "deep": {"list": [written]}}
    filled, wrong = spec.fill_in(options, {"cut": value})
    assert wrong == []
    expected = written if expected is None else expected
    assert filled == {"o": expected, "deep": {"list": [expected]}}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_a_whole_value_reference_is_exactly_the_parameter(value: object) -> None:
    assert spec.fill_in({"o": "${p}"}, {"p": value}) == ({"o": value}, [])


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        (
            WORDS.replace("${cut}", "${kut}"),
            {},
            [
                "parameters.cut: no option uses it; remove it or write '${cut}' as an option's "
                "value",
                "node 'chunk', options.separator: no parameter 'kut'; "
                "known parameters: longest, cut",
            ],
        ),
        (
            WORDS,
            {"max_chars": 5},
            ["parameters.max_chars: there is no such parameter; known parameters: longest, cut"],
        ),
        (
            "{name: none, nodes: [{id: read, kind: extract.decode}]}",
            {"x": 5},
            ["parameters.x: there is no such parameter; the definition has no parameters"],
        ),
        (
            WORDS,
            {"longest": 0},
            [
                "node 'chunk', options.max_chars: 0 is not allowed: "
                "input should be greater than 0 (from parameter 'longest')"
            ],
        ),
        (
            WORDS.replace('"${cut}"', '"<${cut}>"'),
            {"cut": ["a"]},
            [
                "node 'chunk', options.separator: parameter 'cut' is ['a'], which cannot stand "
                "inside a text; make '${cut}' the whole value"
            ],
        ),
        (
            WORDS.replace("{default: 7, d", "{d").replace("longest: ", "1: 2\n  longest: "),
            {},
            [
                "parameters.1.[key]: 1 is not allowed: input should be a valid string",
                "parameters.1: 2 is not allowed: it should be a mapping of default, description",
                "parameters.longest.default: is required and missing",
                "node 'chunk', options.max_chars: no parameter 'longest'; known parameters: cut",
            ],
        ),
    ],
)
def test_a_wrong_parameter_is_named_with_what_would_work(
    text: str, parameters: dict[str, object], expected: list[str]
) -> None:
    assert problems(text, parameters) == expected


# --- what cannot run

BAD = {
    "unknown kind": (
        NODES.replace("chunk.words", "chunk.word") + "edges: [[read, chunk], [chunk, count]]",
        [
            "node 'chunk', kind: no node kind 'chunk.word'; known kinds: "
            "extract.decode, clean.upper, chunk.words, count, join, call, lie"
        ],
    ),
    "duplicate id": (
        NODES.replace("id: count", "id: chunk") + "edges: [[read, chunk]]",
        ["node 'chunk', id: 2 nodes have this id; give each its own"],
    ),
    "edge to nowhere": (
        NODES + "edges: [[read, chunk], [chunk, count], [chunk, sum]]",
        ["edge 'chunk' -> 'sum': no node 'sum'; nodes: read, chunk, count"],
    ),
    "duplicate edge": (
        NODES + "edges: [[read, chunk], [chunk, count], {from: chunk, to: count}]",
        ["edge 'chunk' -> 'count': is there 2 times; once is enough"],
    ),
    "missing edge": (
        NODES + "edges: [[read, chunk]]",
        [
            "node 'count', edges: no edge leads here, and the pipeline starts at 'read'; "
            "add an edge to 'count' or remove the node"
        ],
    ),
    "no edges at all": (
        NODES,
        [
            "node 'chunk', edges: no edge leads here, and the pipeline starts at 'read'; "
            "add an edge to 'chunk' or remove the node",
            "node 'count', edges: no edge leads here, and the pipeline starts at 'read'; "
            "add an edge to 'count' or remove the node",
        ],
    ),
    "the start is where edges begin, not what is listed first": (
        "{name: s, nodes: [{id: count, kind: count}, {id: a, kind: extract.decode},"
        " {id: b, kind: clean.upper}], edges: [[a, b]]}",
        [
            "node 'count', edges: no edge leads here, and the pipeline starts at 'a'; "
            "add an edge to 'count' or remove the node"
        ],
    ),
    "an unreadable node is not taken for a missing one": (
        NODES.replace("kind: chunk.words, options", "kynd: chunk.words, options")
        + "edges: [[read, chunk], [chunk, count]]",
        [
            "nodes[1].kind: is required and missing",
            "nodes[1].kynd: is not known; known here: id, kind, options",
        ],
    ),
    "an unreadable node's id is taken": (
        "{name: u, nodes: [{id: a, kind: count}, {id: a}]}",
        [
            "nodes[1].kind: is required and missing",
            "node 'a', id: 2 nodes have this id; give each its own",
        ],
    ),
    "two edges into one node": (
        NODES + "edges: [[read, chunk], [chunk, count], [read, count]]",
        [
            "node 'count', edges: 2 edges lead here, from 'chunk', 'read'; a node takes one "
            "value, and joining is not supported: keep one of the edges"
        ],
    ),
    "misfit": (
        NODES + "edges: [[read, count], [count, chunk]]",
        [
            "node 'chunk', edge 'count' -> 'chunk': 'chunk' (chunk.words) takes ParsedDocument, "
            "but 'count' (count) gives int; remove the edge"
        ],
    ),
    "loop": (
        "{name: loop, nodes: [{id: a, kind: clean.upper}, {id: b, kind: clean.upper},"
        " {id: c, kind: clean.upper}], edges: [[a, b], [b, c], [c, a]]}",
        ["node 'a', edges: the edges run in a loop: a -> b -> c -> a; remove one of them"],
    ),
    "two loops beside a start": (
        "{name: loops, nodes: [{id: s, kind: clean.upper}, {id: a, kind: clean.upper},"
        " {id: b, kind: clean.upper}, {id: c, kind: clean.upper}],"
        " edges: [[a, b], [b, a], [c, c]]}",
        [
            "node 'a', edges: the edges run in a loop: a -> b -> a; remove one of them",
            "node 'c', edges: the edges run in a loop: c -> c; remove one of them",
        ],
    ),
    "wrong options": (
        "{name: o, nodes: [{id: c, kind: chunk.words, options:"
        " {max_chars: -1, mode: last, size: 3, nested: {a: [1]}}}]}",
        [
            "node 'c', options.max_chars: -1 is not allowed: input should be greater than 0",
            "node 'c', options.mode: 'last' is not allowed: input should be 'all' or 'first'",
            "node 'c', options.nested.a.0: 1 is not allowed: input should be a valid string",
            "node 'c', options.size: is not known; known here: separator, max_chars, mode, nested",
        ],
    ),
    "required option": (
        "{name: o, nodes: [{id: c, kind: call}]}",
        ["node 'c', options.action: is required and missing"],
    ),
    "option of a node without options": (
        "{name: o, nodes: [{id: c, kind: count, options: {x: 1}}]}",
        ["node 'c', options.x: is not known; known here: nothing"],
    ),
    "wrong shapes": (
        "{name: 5, title: x, nodes: [{id: a b, kind: count}, {kind: count}, {id: c, kind: [1]},"
        " count, {id: d, kind: count, options: [1]}], edges: [[a, b, c], {from: c}, 7]}",
        [
            "name: 5 is not allowed: input should be a valid string",
            "title: is not known; known here: name, description, parameters, nodes, edges",
            "nodes[0].id: 'a b' is not allowed: string should match pattern '^[A-Za-z0-9_.-]+$'",
            "nodes[1].id: is required and missing",
            "nodes[2].kind: [1] is not allowed: input should be a valid string",
            "nodes[3]: 'count' is not allowed: it should be a mapping of id, kind, options",
            "nodes[4].options: [1] is not allowed: input should be a valid dictionary",
            "edges[0]: ['a', 'b', 'c'] is not allowed: it should be a mapping of from, to",
            "edges[1].to: is required and missing",
            "edges[2]: 7 is not allowed: it should be a mapping of from, to",
        ],
    ),
    "nothing in it": (
        "{}",
        ["name: is required and missing", "nodes: is required and missing"],
    ),
    "no nodes": (
        "{name: n, nodes: []}",
        ["nodes: [] is not allowed: list should have at least 1 item after validation, not 0"],
    ),
    "everything at once": (
        "{name: all, nodes: [{id: a, kind: nope}, {id: b, kind: chunk.words, options: {x: 1}},"
        " {id: b, kind: count}], edges: [[b, z]]}",
        [
            "node 'a', kind: no node kind 'nope'; known kinds: "
            "extract.decode, clean.upper, chunk.words, count, join, call, lie",
            "node 'b', options.x: is not known; known here: separator, max_chars, mode, nested",
            "node 'b', id: 2 nodes have this id; give each its own",
            "edge 'b' -> 'z': no node 'z'; nodes: a, b",
            "node 'b', edges: no edge leads here, and the pipeline starts at 'a'; "
            "add an edge to 'b' or remove the node",
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD)
def test_every_problem_is_found_before_a_run(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_a_kind_that_fits_between_two_nodes_is_proposed() -> None:
    with pytest.raises(GraphError) as caught:
        Graph.from_dict(chain("extract.decode", "join"), kinds=KINDS)
    assert str(caught.value) == (
        "pipeline 'chain' cannot run: node 'n1', edge 'n0' -> 'n1': 'n1' (join) takes Chunked, "
        "but 'n0' (extract.decode) gives ParsedDocument; "
        "put one of these between: chunk.words, lie"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a pipeline definition is a mapping with name, nodes and edges, not None"),
        ("just words", "a pipeline definition is a mapping .*, not 'just words'"),
        ("[1]", "a pipeline definition is a mapping"),
        ("name: [", "the definition is not YAML at line [12], column"),
        ("name: a\nname: b", "not YAML at line 2, column 1: key 'name' is given twice"),
        ("a: &a [1]\nb: *a", "the definition uses an alias at line 2, column 4; write the value"),
        ("name: !!python/object:os.system x", "not YAML at line 1, column 7: could not determine"),
        ("a: 1\n---\nb: 1", "not YAML at line 2"),
        ("[" * 50_000, "nested deeper than 40 levels at line 1, column 41"),
        ("a: !!timestamp x", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: \ud800", "not YAML"),
        ("{[1]: 2}", "not YAML at line 1, column 2"),
    ],
)
def test_what_is_not_a_definition_is_refused_with_the_place(text: str, expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        graph(text)


def test_a_definition_beyond_the_size_limit_is_not_read() -> None:
    size = len(WORDS.encode())
    assert Graph.from_yaml(WORDS, kinds=KINDS, max_bytes=size)
    with pytest.raises(GraphError, match=rf"has {size} bytes; at most {size - 1} are read"):
        Graph.from_yaml(WORDS, kinds=KINDS, max_bytes=size - 1)


def test_the_largest_hopeless_definition_is_refused_within_seconds() -> None:
    nodes = "".join(f"- {{id: n{i}, kind: clean.upper}}\n" for i in range(4_000))
    edges = "".join(f"- [n{i}, n{i ^ 1}]\n- [n{i}, m{i}]\n" for i in range(4_000))
    began = time.perf_counter()
    with pytest.raises(GraphError) as caught:
        graph(f"name: huge\nnodes:\n{nodes}edges:\n{edges}")
    assert time.perf_counter() - began < 15
    assert len(caught.value.problems) > 4_000
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).endswith("more")


def test_deep_data_is_refused_not_walked() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(GraphError, match="nested deeper than 40 levels"):
        Graph.from_dict({"name": "deep", "nodes": [], "edges": deep}, kinds=KINDS)
    with pytest.raises(GraphError, match="nested deeper than 40 levels"):
        graph(parameters={"cut": deep})


# --- there and back


def test_a_graph_written_out_and_read_again_is_equal() -> None:
    bound = graph(parameters={"longest": 3})
    again = Graph.from_dict(bound.to_dict(), kinds=KINDS)
    assert again == bound
    assert again != graph()
    assert chunker(again).max_chars == 3
    assert bound.to_dict() == {
        "name": "words",
        "description": "Counts words.",
        "parameters": {
            "longest": {"default": 3, "description": "The longest word."},
            "cut": {"default": " "},
        },
        "nodes": [
            {"id": "read", "kind": "extract.decode"},
            {
                "id": "chunk",
                "kind": "chunk.words",
                "options": {"max_chars": "${longest}", "separator": "${cut}"},
            },
            {"id": "count", "kind": "count"},
        ],
        "edges": [{"from": "read", "to": "chunk"}, {"from": "chunk", "to": "count"}],
    }


def test_changing_the_data_afterwards_does_not_change_the_graph() -> None:
    document = chain("chunk.words")
    document["nodes"][0]["options"] = {"nested": {"a": ["b"]}}
    built = Graph.from_dict(document, kinds=KINDS)
    document["nodes"][0]["options"]["nested"]["a"].append("c")
    assert built.to_dict()["nodes"][0]["options"] == {"nested": {"a": ["b"]}}


# --- whatever comes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "nodes", "edges", "id", "kind", "from", "to", "options"])
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(JSON)
def test_any_data_is_a_graph_or_a_graph_error(document: object) -> None:
    try:
        built = Graph.from_dict(document, kinds=KINDS)
    except GraphError:
        return
    assert built.order


@given(st.text(max_size=200) | st.text(alphabet="{}[]:,-&*!<#'\"|> \nab", max_size=200))
def test_any_text_is_a_graph_or_a_graph_error(text: str) -> None:
    try:
        built = graph(text)
    except GraphError:
        return
    assert built.order


@given(st.data())
def test_any_edges_make_a_runnable_order_or_a_graph_error(data: st.DataObject) -> None:
    ids = [f"n{i}" for i in range(data.draw(st.integers(1, 6)))]
    ends = st.sampled_from(ids)
    edges = data.draw(st.lists(st.tuples(ends, ends), max_size=8))
    document = {
        "name": "any",
        "nodes": [{"id": each, "kind": "clean.upper"} for each in ids],
        "edges": [list(edge) for edge in edges],
    }
    is_tree = (
        len(edges) == len(ids) - 1
        and len({target for _, target in edges}) == len(edges)
        and _reaches_all(ids, edges)
    )
    try:
        built = Graph.from_dict(document, kinds=KINDS)
    except GraphError:
        assert not is_tree
    else:
        assert is_tree
        assert sorted(built.order) == sorted(ids)
        assert all(built.order.index(a) < built.order.index(b) for a, b in edges)


def _reaches_all(ids: list[str], edges: list[tuple[str, str]]) -> bool:
    (root,) = set(ids) - {target for _, target in edges}
    reached = {root}
    for _ in ids:
        reached |= {target for source, target in edges if source in reached}
    return reached == set(ids)


# --- the built-in definitions

ROLES = {
    "general": ["extract", "clean", "chunk", "embed", "index"],
    "general_economy": ["extract", "clean", "chunk", "index"],
    "parent_child": ["extract", "clean", "chunk", "embed", "index"],
    "parent_child_full_doc": ["extract", "chunk", "embed", "index"],
    "qa": ["extract", "chunk", "embed", "index"],
    "qa_text": ["extract", "clean", "chunk", "embed", "index"],
}


def test_the_built_in_definitions_are_these() -> None:
    assert definitions() == sorted(ROLES)
    with pytest.raises(
        GraphError, match=r"'\.\./general'; known definitions: general, general_eco"
    ):
        definition("../general")


@pytest.mark.parametrize("name", ROLES)
def test_a_built_in_definition_runs_the_roles_it_promises(name: str) -> None:
    built = Graph.from_yaml(definition(name))
    assert built.name == name
    assert [built.role(each) for each in built.order] == ROLES[name]


@pytest.mark.parametrize("name", ROLES)
def test_a_built_in_parameter_is_named_and_preset_like_the_option_it_sets(name: str) -> None:
    built = Graph.from_yaml(definition(name))
    kinds = node_kinds()
    for node in built.spec.nodes:
        for option, value in node.options.items():
            if isinstance(value, str) and value.startswith("$"):
                assert value == f"${{{option}}}"
                preset = kinds[node.kind].model_fields[option].default
                assert built.parameters[option].default == preset
    assert all(each.description for each in built.parameters.values())
