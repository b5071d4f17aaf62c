"""The manual of the built-in node kinds, made from their classes.

`python -m pipelines.docs > docs/nodes.md`
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from pipelines.definitions import definition, definitions
from pipelines.graph import Graph
from pipelines.node import Node, node_kinds
from pipelines.typefit import type_name

_HEAD = """# Node kinds

Made from the classes by `python -m pipelines.docs > docs/nodes.md`; edit their docstrings, not this
page. How to write a kind of your own: [how-to-add-a-node.md](how-to-add-a-node.md).
"""
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "characters at least",
    "maxLength": "characters at most",
}
_ATTRIBUTE = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8,}.*|\n(?= *\n))*)", re.MULTILINE)


def page() -> str:
    """The manual page as Markdown: every built-in kind and definition."""
    kinds = {k: c for k, c in node_kinds().items() if c.__module__.startswith("pipelines.")}
    parts = [_HEAD, *(_kind(kind, cls) for kind, cls in kinds.items()), *_definitions()]
    return "\n".join(parts)


def _kind(kind: str, cls: type[Node[Any, Any]]) -> str:
    text = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")[0].strip()
    flow = f"Takes `{type_name(cls.takes())}`, gives `{type_name(cls.gives())}`."
    rows = list(_options(cls, _meanings(cls)))
    table = ["| option | value | default | meaning |", "|---|---|---|---|", *rows]
    return f"## {kind}\n\n{flow}\n\n{text}\n\n{chr(10).join(table) if rows else 'No options.'}\n"


def _meanings(cls: type[Any]) -> dict[str, str]:
    """Option -> meaning, from `Attributes:` sections and the strings below the fields."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("pipelines."):
            continue
        attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        for names, meaning in _ATTRIBUTE.findall(attributes):
            meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
        try:
            (written,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except OSError:  # made at run time, such as Node[Blob, ParsedDocument]
            continue
        for line, below in pairwise(getattr(written, "body", ())):
            match line, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(meaning))),
                ):
                    meanings[name] = " ".join(meaning.split())
    return meanings


def _options(cls: type[Node[Any, Any]], meanings: Mapping[str, str]) -> Iterator[str]:
    properties = cls.model_json_schema().get("properties", {})
    for name, option in cls.model_fields.items():
        schema = properties[name]
        allowed = [json.dumps(each) for each in schema.get("enum", ())]
        value = " or ".join(allowed) or type_name(option.annotation)
        limits = [f", {words} {schema[key]}" for key, words in _LIMITS.items() if key in schema]
        default = "required" if option.is_required() else f"`{_literal(schema.get('default'))}`"
        meaning = option.description or meanings.get(name, "")
        cells = [f"`{name}`", value + "".join(limits), default, meaning]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


def _definitions() -> Iterator[str]:
    yield "# Built-in pipelines\n"
    for name in definitions():
        graph = Graph.from_yaml(definition(name))
        steps = " → ".join(graph.kind(each) for each in graph.order)
        rows = [
            f"| `{key}` | `{_literal(each.default)}` | {each.description} |"
            for key, each in graph.parameters.items()
        ]
        table = "\n".join(["| parameter | default | meaning |", "|---|---|---|", *rows])
        yield f"## {name}\n\n{graph.description} {steps}\n\n{table}\n"


if __name__ == "__main__":
    print(page(), end="")
