"""The manual is true: up to date, complete, and its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.docs import page
from pipelines.node import node_kinds

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to-add-a-node.md"


def test_the_manual_of_node_kinds_is_up_to_date() -> None:
    written = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m pipelines.docs > docs/nodes.md"


@pytest.mark.parametrize("name", ["nodes.md", "how-to-add-a-node.md"])
def test_every_built_in_kind_is_in_the_manual(name: str) -> None:
    manual = (ROOT / "docs" / name).read_text(encoding="utf-8")
    built_in = [k for k, cls in node_kinds().items() if cls.__module__.startswith("pipelines.")]
    assert built_in
    assert [kind for kind in built_in if not re.search(rf"\b{re.escape(kind)}\b", manual)] == []


def test_every_option_of_a_built_in_kind_has_a_meaning_in_the_manual() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", page(), re.MULTILINE)
    assert rows
    assert [name for name, meaning in rows if not meaning.strip()] == []


def test_the_examples_of_how_to_add_a_node_run() -> None:
    """In a process of their own, because a kind stays registered once it is."""
    blocks = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "known kinds: chunk.general, chunk.lines" in done.stdout
