"""Two hundred calls at random: after each, lists and answers are what plain bookkeeping says; after
all, the doctor finds nothing. `--seeds` says how many such sequences are tried.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.random_calls import Calls
from tests.kb.ingesting import open_lab

STEPS = 200


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seeds = metafunc.config.getoption("--seeds")
    metafunc.parametrize("seed", range(1, seeds + 1))


def test_lists_and_answers_agree_with_the_books_after_every_call(seed: int, tmp_path: Path) -> None:
    with open_lab(tmp_path / "lab") as lab:
        calls = Calls(lab, seed)
        for number in range(STEPS):
            try:
                calls.step()
            except AssertionError as exc:
                last = "\n".join(calls.done[-10:])
                raise AssertionError(f"seed {seed}, call {number}, after:\n{last}\n{exc}") from exc
        calls.compare_all()
        lab.later()
        report = lab.client.post("/v1/doctor?deep=true").json()
        assert report["healthy"], report
