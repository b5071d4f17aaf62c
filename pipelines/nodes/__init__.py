"""The built-in node kinds, and those that other packages add."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

_BUILT_IN = (
    "pipelines.nodes.extract",
    "pipelines.nodes.extract.rows",
    "pipelines.nodes.clean",
    "pipelines.nodes.chunk",
    "pipelines.nodes.embed",
    "pipelines.nodes.index",
)


@cache
def load_plugins() -> None:
    """Import every module that registers node kinds; entry points of the group `kb.nodes`."""
    for module in _BUILT_IN:
        import_module(module)
    for entry_point in entry_points(group="kb.nodes"):
        entry_point.load()
