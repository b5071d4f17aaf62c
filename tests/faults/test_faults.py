"""Faults done to a running installation: no document is stuck, lost or indexed twice.

The short form of `make faults`: some rounds of every kind on one installation.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import delete, select

from kb.db import transaction
from kb.models import Segment
from tests.faults.check import findings
from tests.faults.rounds import KINDS, Unable
from tests.faults.run import run_round
from tests.faults.site import Site, open_site
from tests.services import ServiceMissing

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

SEED = int(os.environ.get("KB_TEST_FAULTS_SEED", "1"))
ROUNDS = {
    "kill at a step": [*range(2, 48, 6)],
    "kill a child at a step": [1, 4],
    "kill while embedding": [1, 3],
    "kill at random": [0],
    "freeze": [1],
    "index fails 5 %": [0],
}
"""Kind -> numbers of its rounds; of the others the first."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One installation for all rounds."""
    try:
        with open_site() as opened:
            yield opened
    except ServiceMissing as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind in KINDS for n in ROUNDS.get(kind, [0])]
)
def test_after_every_fault_each_document_is_there_once(site: Site, kind: str, number: int) -> None:
    try:
        round_, found = run_round(site, kind, number, SEED)
    except Unable as exc:
        pytest.skip(str(exc))
    assert not found, f"seed {SEED}, {kind}:{number}, {round_.note}\n{found}"


def test_a_loss_and_a_double_are_found(site: Site) -> None:
    """The proof of the proof: damage by hand does not go unnoticed."""
    resources = site.service.resources
    load = site.load(random.Random(SEED))
    load.add(9, 3)
    assert site.wait(site.settled)
    reference = site.reference(dense=False)
    assert not findings(resources, load, reference)
    with transaction(resources.sessions) as session:
        victim = session.scalars(
            select(Segment.id).where(Segment.dataset_id == load.dataset)
        ).first()
        session.execute(delete(Segment).where(Segment.id == victim))
    found = findings(resources, load, reference)
    assert found.lost
    assert found.doubled == [f"point {victim} has no segment"]
    site.service.client.delete(f"/v1/datasets/{load.dataset}")
    assert site.wait(site.settled)
