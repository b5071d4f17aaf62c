"""The built-in pipelines: graphs as data, one YAML file each."""

from __future__ import annotations

from importlib.resources import files

from pipelines.errors import GraphError

_SUFFIX = ".yaml"


def definitions() -> list[str]:
    """The names of the built-in definitions, ascending."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def definition(name: str) -> str:
    """The YAML text of a built-in definition, for `Graph.from_yaml`.

    Raises:
        GraphError: no such definition; the message lists those there are.
    """
    known = definitions()
    if name not in known:  # also keeps a name from being a path to somewhere else
        raise GraphError(f"no pipeline definition {name!r}; known definitions: {', '.join(known)}")
    return files(__name__).joinpath(name + _SUFFIX).read_text(encoding="utf-8")
