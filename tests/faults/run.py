"""Runs rounds, checks each, and keeps count."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.check import Findings, findings
from tests.faults.rounds import KINDS, Round, Unable
from tests.faults.site import Site


@dataclass
class Tally:
    """Of one kind of fault."""

    rounds: int = 0
    documents: int = 0
    lost: int = 0
    doubled: int = 0
    other: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(self, round_: Round, found: Findings, seconds: float) -> None:
        """Count a round."""
        self.rounds += 1
        self.documents += len(round_.load.documents) if round_.load else 0
        self.lost += len(found.lost)
        self.doubled += len(found.doubled)
        self.other += len(found.other)
        self.seconds += seconds
        self.notes.append(round_.note)


def run_round(site: Site, kind: str, number: int, seed: int) -> tuple[Round, Findings]:
    """One round of a kind; afterwards the site is whole again.

    The same seed, kind and number make the same choices again.
    """
    round_ = Round(site, random.Random(f"{seed}/{kind}/{number}"), number)
    try:
        site.heal()
        KINDS[kind][0](round_)
        found = _look(round_)
    finally:
        site.remove_trap()
        site.double.faults.clear()
    return round_, found


def _look(round_: Round) -> Findings:
    site, load = round_.site, round_.load
    assert load is not None
    site.heal()
    if not site.wait(site.settled):
        return Findings(lost=[f"not settled in time: {site.told()}"])
    reference = site.reference(dense=round_.dense)
    found = findings(site.service.resources, load, reference, ended=sorted(round_.ended))
    if not found:
        site.service.client.delete(f"/v1/datasets/{load.dataset}")
    return found


def run_rounds(
    site: Site, plan: Iterable[tuple[str, int]], seed: int, say: object = None
) -> dict[str, Tally]:
    """Run (kind, number) after one another; what was found is told as it happens."""
    tallies: dict[str, Tally] = {}
    for kind, number in plan:
        began = time.monotonic()
        try:
            round_, found = run_round(site, kind, number, seed)
        except Unable as exc:
            print(f"{kind}:{number}  left out: {exc}")
            continue
        seconds = time.monotonic() - began
        tallies.setdefault(kind, Tally()).add(round_, found, seconds)
        if callable(say):
            say(kind, number, round_, found, seconds)
    return tallies
