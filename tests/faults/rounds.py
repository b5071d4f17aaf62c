"""The faults: what is done to an installation in a round of each kind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from kb.adapters.celery_queue import QUEUES
from tests.faults.load import Load
from tests.faults.places import NODES, places
from tests.faults.site import DENSE_LINES, LEASE_S, Site


@dataclass
class Round:
    """One round: the chance that decides its details, and what it made.

    Attributes:
        number: of the round within its kind.
        ended: how runs may end besides `succeeded`; see `check.findings`.
        dense: its dataset has vectors.
        note: what was done, for people.
    """

    site: Site
    chance: random.Random
    number: int
    ended: set[str] = field(default_factory=lambda: {"stopped"})
    dense: bool = False
    note: str = ""
    load: Load | None = None

    def begin(self, *, dense: bool = False) -> Load:
        """The round's dataset, still empty."""
        self.dense = dense
        self.site.reference(dense=dense)
        if dense:
            self.site.forget_vectors()
        self.load = self.site.load(self.chance, dense=dense)
        return self.load

    def some_work(self) -> None:
        """Return after a random number of moments, at the latest when nothing is left to do."""
        ends = time.monotonic() + self.chance.uniform(0.0, 0.8)
        while time.monotonic() < ends and not self.site.settled():
            time.sleep(0.01)


Kind = Callable[[Round], None]


# --- workers ---------------------------------------------------------------------------------


def killed_at_a_place(round_: Round) -> None:
    """kill -9 of a worker exactly before or after one of its steps."""
    everywhere = places()
    _at_a_place(round_, everywhere[round_.number % len(everywhere)], "threads")


def killed_child_at_a_place(round_: Round) -> None:
    """The same with a pool of processes, of which one is killed."""
    everywhere = places()
    _at_a_place(round_, everywhere[(7 * round_.number) % len(everywhere)], "prefork")


def killed_while_embedding(round_: Round) -> None:
    """kill -9 before or after vectors are made and kept, and at other steps with a model."""
    everywhere = [*places(embedding=True), *places()]
    _at_a_place(round_, everywhere[round_.number % len(everywhere)], "threads", dense=True)


def _at_a_place(round_: Round, place: str, pool: str, *, dense: bool = False) -> None:
    site = round_.site
    site.use_pool(pool)
    round_.ended |= {"lost"}
    load = round_.begin(dense=dense)
    nth = 1 if _seldom(place) else round_.chance.choice((1, 1, 2, 3))
    round_.note = f"{place}, {nth}"
    site.set_trap(place, nth)
    if dense:
        load.add(*round_.chance.choices(DENSE_LINES, k=3))
        load.replace(round_.chance.choice(load.remaining()), round_.chance.choice(DENSE_LINES))
    else:
        load.mix()
        load.disturb()
    if place.endswith(("delete document", "delete file")):
        site.wait(lambda: load.delete(load.remaining()[0]), 20)
    other = load.client.delete(f"/v1/datasets/{_other(site)}")
    assert other.status_code == 204, other.text
    sprung = site.wait(lambda: site.sprung() or site.settled())
    assert sprung, site.told()
    if not site.sprung():  # fewer calls than asked for
        round_.note += " (not reached)"
        site.remove_trap()
    site.heal()


def _seldom(place: str) -> bool:
    return place.endswith(("dataset", "document", "delete file", "points"))


def _other(site: Site) -> str:
    """A dataset with a document that is being worked on."""
    load = site.load(random.Random(1))
    load.add(9)
    return load.dataset


def killed_at_random(round_: Round) -> None:
    """kill -9 of one or all workers at random moments, up to three times."""
    site = round_.site
    site.use_pool(round_.chance.choice(("threads", "threads", "prefork")))
    round_.ended |= {"lost"}
    load = round_.begin()
    load.mix()
    kills = round_.chance.randint(1, 3)
    for kill in range(kills):
        round_.some_work()
        if kill == 0:
            load.disturb()
        for victim in round_.chance.sample(site.workers, round_.chance.choice((1, 1, 2))):
            children = victim.children()
            if children and round_.chance.random() < 0.5:
                os.kill(round_.chance.choice(children), signal.SIGKILL)
            else:
                victim.kill()
        site.heal()
    round_.note = f"{site.pool}, {kills} kills"


def frozen(round_: Round) -> None:
    """A worker stands still for longer than its lease, and then goes on as if nothing happened."""
    site = round_.site
    site.use_pool("threads")
    round_.ended |= {"lost", "failed"}
    steps = ["stage", "upsert", "mark", "marked", "switch", "end run", "load", *NODES[:1]]
    place = f"{round_.chance.choice(('before', 'after'))} {steps[round_.number % len(steps)]}"
    load = round_.begin()
    site.set_trap(place, round_.chance.choice((1, 2)), "SIGSTOP")
    load.mix()
    load.disturb()
    assert site.wait(lambda: site.sprung() or site.settled()), site.told()
    site.remove_trap()
    stopped = [worker for worker in site.workers if _is_stopped(worker.pid)]
    if stopped and round_.chance.random() < 0.5:
        load.disturb()
    time.sleep(LEASE_S * round_.chance.choice((0.3, 1.3, 1.8)))
    for worker in stopped:
        os.kill(worker.pid, signal.SIGCONT)
    round_.note = place if stopped else f"{place} (not reached)"


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


# --- servers ---------------------------------------------------------------------------------


def broker_flushed(round_: Round) -> None:
    """Everything in Redis is gone, more than once."""
    site = round_.site
    load = round_.begin()
    load.mix()
    for _ in range(round_.chance.randint(1, 3)):
        site.service.flush_broker()
        round_.some_work()
    load.disturb()
    site.service.flush_broker()


def broker_killed(round_: Round) -> None:
    """Redis is killed and started again, while uploads go on."""
    site = round_.site
    load = round_.begin()
    load.mix()
    round_.some_work()
    site.service.broker.restart()
    load.disturb()
    site.heal()


def database_killed(round_: Round) -> None:
    """PostgreSQL crashes and recovers, while documents are in work."""
    site = round_.site
    round_.ended |= {"lost", "failed"}
    load = round_.begin()
    load.mix()
    round_.some_work()
    site.postgresql.restart()
    assert site.wait(lambda: site.in_work() >= 0)
    site.heal()


INDEX_FAULTS = ("500", "503", "429-bare", "timeout", "reset", "lost", "unfinished")


def index_fails(round_: Round) -> None:
    """One call to the index in twenty fails, in every way that a network has."""
    site = round_.site
    round_.ended |= {"failed"}
    faults = site.double.faults
    faults.timeout_s = 0.1
    before = sum(faults.drawn.values())
    load = round_.begin()
    faults.some(0.05, INDEX_FAULTS, seed=round_.chance.randrange(1 << 30))
    load.mix(8, 6)
    load.disturb()
    assert site.wait(site.settled), site.told()
    faults.clear()
    round_.note = f"{sum(faults.drawn.values()) - before} calls failed"


def delivered_five_times(round_: Round) -> None:
    """Every message in Redis is there five times."""
    site = round_.site
    load = round_.begin()
    load.mix()
    copied = 0
    with redis.Redis.from_url(site.service.broker.url) as broker:
        for _ in range(3):
            for queue in QUEUES:
                messages = broker.lrange(queue, 0, -1)
                if messages:
                    broker.rpush(queue, *(messages * 4))
                    copied += len(messages)
            round_.some_work()
    load.disturb()
    round_.note = f"{copied} messages copied"


KINDS: dict[str, tuple[Kind, int]] = {
    "kill at a step": (killed_at_a_place, 2 * len(places())),
    "kill a child at a step": (killed_child_at_a_place, 16),
    "kill while embedding": (killed_while_embedding, 12),
    "kill at random": (killed_at_random, 20),
    "freeze": (frozen, 12),
    "redis flushed": (broker_flushed, 10),
    "redis killed": (broker_killed, 10),
    "postgresql killed": (database_killed, 12),
    "index fails 5 %": (index_fails, 12),
    "delivered 5 times": (delivered_five_times, 8),
}
"""Name -> what happens in a round, and how many rounds the long form has."""
