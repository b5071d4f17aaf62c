"""YAML from strangers: plain data only, bounded in size and depth, nothing silently dropped."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from pipelines.errors import GraphError

_Base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is about 10x faster


class _Loader(_Base):  # type: ignore[misc]  # which of the two is known at import only
    """Safe loading that refuses a key given twice instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below, because it cannot be hashed
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load(text: str, *, max_bytes: int, max_depth: int) -> Any:
    """The data of one YAML document.

    Anchors and aliases are refused, because a few hundred bytes of them stand for gigabytes.

    Args:
        max_bytes: of the text in UTF-8.
        max_depth: of mappings and lists inside each other.
    Raises:
        GraphError: not YAML, or beyond a limit; the message has line and column.
    """
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > max_bytes:
        raise GraphError(f"the definition has {size_bytes} bytes; at most {max_bytes} are read")
    try:
        _check_events(text, max_depth)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as exc:
        where = _at(exc.problem_mark or exc.context_mark)
        raise GraphError(f"the definition is not YAML{where}: {exc.problem}") from exc
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as exc:
        # the last four: PyYAML's constructors for explicit tags, such as `!!timestamp x`
        raise GraphError(f"the definition is not YAML: {exc}") from exc


def _check_events(text: str, max_depth: int) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise GraphError(
                f"the definition uses an alias{_at(event.start_mark)}; write the value out"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > max_depth:
            at = _at(event.start_mark)
            raise GraphError(f"the definition is nested deeper than {max_depth} levels{at}")


def _at(mark: Any) -> str:
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
