"""The benchmark of listings runs on a small dataset and reports what its manual says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import listing
from tests.models import model_cache

pytestmark = [pytest.mark.integration, pytest.mark.e2e]


def test_pages_are_timed_both_ways_and_hold_the_same_documents(tmp_path: Path) -> None:
    model_cache().mkdir(parents=True, exist_ok=True)
    (tmp_path / "models").symlink_to(model_cache().resolve())
    report = listing.measure(cache_dir=tmp_path, documents=230, segments=2, pages=3)
    matching = {kind: figures["matching"] for kind, figures in report["kinds"].items()}
    assert matching == {"any page": 230, "status=available": 230, "keyword (1 in 10)": 23}
    for figures in report["kinds"].values():
        assert figures["http"]["queries"] == figures["plain"]["queries"] == 3
        assert 0 < figures["http"]["p50_ms"] <= figures["http"]["p95_ms"]
        assert figures["ratio"]["p50_ms"] > 0
    json.dumps(report)
    assert "any page" in listing.show(report)
