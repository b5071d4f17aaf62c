"""The long form: `python -m tests.faults [--rounds N] [--seed S] [--only KIND[:NUMBER] ...]`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from tests.faults.check import Findings
from tests.faults.rounds import KINDS, Round
from tests.faults.run import Tally, run_rounds
from tests.faults.site import open_site


def plan_of(rounds: int | None, only: list[str]) -> list[tuple[str, int]]:
    """(kind, number) in order: kind after kind, each as often as its share says.

    Raises:
        SystemExit: there is no such kind.
    """
    chosen = [text.partition(":")[::2] for text in only] or [(kind, "") for kind in KINDS]
    for kind, _ in chosen:
        if kind not in KINDS:
            sys.exit(f"no fault {kind!r}; known: {', '.join(KINDS)}")
    in_all = sum(KINDS[kind][1] for kind, _ in chosen)
    plan: list[tuple[str, int]] = []
    for kind, number in chosen:
        share = KINDS[kind][1]
        if number:
            plan.append((kind, int(number)))
            continue
        count = share if rounds is None else max(1, round(rounds * share / in_all))
        plan += [(kind, n) for n in range(count)]
    return plan


def say(kind: str, number: int, round_: Round, found: Findings, seconds: float) -> None:
    """A line per round; what is wrong in full."""
    state = "FAILED" if found else "ok"
    print(f"{kind}:{number}  {round_.note}  {seconds:.1f} s  {state}", flush=True)
    if found:
        print(f"{found}\nagain: make faults SEED=... ONLY='{kind}:{number}'", flush=True)


def table(tallies: dict[str, Tally]) -> str:
    """What `make faults` prints in the end."""
    lines = [
        f"{'fault':<24}{'rounds':>8}{'documents':>11}{'losses':>8}{'duplicates':>12}"
        f"{'other':>7}{'seconds':>9}"
    ]
    whole = Tally()
    for kind, tally in tallies.items():
        lines.append(_line(kind, tally))
        for name in ("rounds", "documents", "lost", "doubled", "other", "seconds"):
            setattr(whole, name, getattr(whole, name) + getattr(tally, name))
    return "\n".join([*lines, _line("in all", whole)])


def _line(kind: str, t: Tally) -> str:
    return (
        f"{kind:<24}{t.rounds:>8}{t.documents:>11}{t.lost:>8}{t.doubled:>12}"
        f"{t.other:>7}{t.seconds:>9.0f}"
    )


def main() -> int:
    """0: nothing was lost, doubled or left over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--only", action="append", default=[])
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(f"seed {given.seed}", flush=True)
    began = time.monotonic()
    with open_site() as site:
        tallies = run_rounds(site, plan_of(given.rounds, given.only), given.seed, say)
    print(f"\nseed {given.seed}, {time.monotonic() - began:.0f} s\n{table(tallies)}")
    return int(any(t.lost or t.doubled or t.other for t in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
