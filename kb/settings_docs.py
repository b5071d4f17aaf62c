"""`.env.example` and `docs/settings.md`, made from the Settings class.

`python -m kb.settings_docs` writes both into the working directory; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from kb.settings import Settings

ENV_FILE = Path(".env.example")
MANUAL = Path("docs/settings.md")

_ENV_HEAD = """\
# Every setting of kb, with its default. Copy this file to .env and change what you need: kb reads
# .env in the directory where it starts, and `docker compose` beside docker-compose.yaml. A variable
# of the environment counts more than a line here; an empty value counts as none.
# Made from kb/settings.py by `make docs`.
"""
_MANUAL_HEAD = """\
# Settings

Every setting is an environment variable, or a line in `.env` of the directory where kb starts; a
variable counts more than a line, and an empty value counts as none. Values that do not validate
stop the process with a message that names the variable. `.env.example` holds all of them with their
defaults. Made from `kb/settings.py` by `make docs`.
"""
COMPOSE = {
    "COMPOSE_PROFILES": ("", "`cluster`, `minio`, `monitoring`, or several with commas."),
    "TORCH_INDEX_URL": ("", "Where a build finds torch without CUDA."),
    "KB_IMAGE": ("kb-engine:0.1.0", "The image that is built, or pulled instead of building."),
    "KB_PUBLISH": ("127.0.0.1:8000", "Where this machine listens for the API."),
    "KB_BALANCER_PUBLISH": ("127.0.0.1:8080", "The same with the profile `cluster`."),
    "KB_WORKER_CONCURRENCY": ("2", "Processes per worker container; each holds the model."),
    "POSTGRES_PASSWORD": ("", "Required. Letters and digits only: it becomes part of a URL."),
    "REDIS_PASSWORD": ("", "Required. Letters and digits only: it becomes part of a URL."),
    "QDRANT_API_KEY": ("", "Required."),
    "KB_GRAFANA_PUBLISH": ("127.0.0.1:3000", "The same for Grafana, with `monitoring`."),
    "GRAFANA_PASSWORD": ("", "Required with the profile `monitoring`, as is KB_METRICS__TOKEN."),
    "MINIO_ROOT_PASSWORD": ("", "Required with the profile `minio`; at least 8 characters."),
}
"""What only docker-compose.yaml reads: default and meaning. Empty: there is no default."""


@dataclass(frozen=True)
class Setting:
    """One environment variable.

    Attributes:
        default: as it would be written in `.env`; None when there is none, or when it depends on
            the machine.
        values: what it takes, in words.
        meaning: the docstring below the field, on one line.
    """

    name: str
    default: str | None
    values: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """Settings that share a prefix; those of the process itself have no title."""

    title: str
    meaning: str
    settings: tuple[Setting, ...]


def groups() -> list[Group]:
    """The settings in the order of the class, the process's own first."""
    return list(_groups(Settings, "Process", "KB_"))


def env_file() -> str:
    """The text of `.env.example`: each setting with its default, switched off."""
    blocks = [_ENV_HEAD]
    for group in groups():
        blocks.append(f"# ---- {group.title}: {group.meaning}\n")
        for setting in group.settings:
            note = f"{setting.meaning} [{setting.values}]"
            blocks.append(_comment(note) + f"# {setting.name}={setting.default or ''}\n")
    blocks.append("# ---- Docker: read by docker-compose.yaml alone\n")
    for name, (default, meaning) in COMPOSE.items():
        blocks.append(_comment(meaning) + f"# {name}={default}\n")
    return "\n".join(blocks)


def manual() -> str:
    """The text of `docs/settings.md`."""
    lines = [_MANUAL_HEAD]
    for group in groups():
        lines += [f"## {group.title}", "", group.meaning, "", "| variable | default | values |  |"]
        lines.append("|---|---|---|---|")
        for s in group.settings:
            default = f"`{s.default}`" if s.default is not None else ""
            cells = (f"`{s.name}`", default, s.values, s.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    lines += ["## Docker", "", "Read by `docker-compose.yaml` alone.", ""]
    lines += ["| variable | default |  |", "|---|---|---|"]
    for name, (default, meaning) in COMPOSE.items():
        lines.append(f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "\n".join(lines) + "\n"


def _groups(cls: type[BaseModel], title: str, prefix: str) -> Iterator[Group]:
    meanings = _docstrings(cls)
    own: list[Setting] = []
    inner: list[Group] = []
    for name, info in cls.model_fields.items():
        variable = prefix + name.upper()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            inner += _groups(info.annotation, name.capitalize(), f"{variable}__")
        else:
            own.append(Setting(variable, _default(info), _values(info), meanings.get(name, "")))
    yield Group(title, _one_line(inspect.getdoc(cls) or ""), tuple(own))
    yield from inner


def _docstrings(cls: type[BaseModel]) -> dict[str, str]:
    """Field name -> the string literal below the field."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = re.sub(r"\bNone\b", "unset", _one_line(text))
    return found


def _default(info: FieldInfo) -> str | None:
    value = info.default
    if info.default_factory is not None or value is None or info.is_required():
        return None
    if isinstance(value, bool | list | dict | tuple):
        return json.dumps(value)
    return str(value)


def _values(info: FieldInfo) -> str:
    """Type and bounds in words."""
    words = _type_words(info.annotation)
    for bound in info.metadata:
        for part in bound if isinstance(bound, annotated_types.GroupedMetadata) else [bound]:
            words += _bound_words(part)
    if info.default is None:
        words += "; unset by default"
    if info.default_factory is not None:
        words += "; the default depends on the machine"
    return words


def _type_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return " or ".join(_type_words(kind) for kind in kinds)
    words = {
        int: "whole number",
        float: "number",
        bool: "true or false",
        str: "text",
        Path: "path",
        SecretStr: "secret text",
    }
    return words.get(annotation, "JSON")


def _bound_words(bound: Any) -> str:
    names = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    for name, word in names.items():
        if (limit := getattr(bound, name, None)) is not None:
            return f" {word} {limit:,}"
    if (pattern := getattr(bound, "pattern", None)) is not None:
        return f" like {pattern}"
    return ""


def _comment(text: str) -> str:
    return textwrap.fill(text, 98, initial_indent="# ", subsequent_indent="# ") + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    """Write both files."""
    ENV_FILE.write_text(env_file(), encoding="utf-8")
    MANUAL.write_text(manual(), encoding="utf-8")


if __name__ == "__main__":
    main()
