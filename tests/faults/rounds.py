"""The faults: what is done to an installation in a round of each kind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import redis

from kb.adapters.celery_queue import QUEUES
from kb.doctor import examine
from kb.doctor.report import Kind as Damage
from tests.embedding_provider import MODEL, Provider, status
from tests.faults.disk import filled
from tests.faults.load import LONG, SMALL, Load
from tests.faults.places import NODES, places
from tests.faults.site import DENSE_LINES, LEASE_S, Site
from tests.kb.server import KEY


class Unable(Exception):
    """This machine lacks what a fault needs; the message says what."""


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
    time.sleep(1.0)  # it learns that its document is another's, and takes back what it wrote last
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


def api_killed(round_: Round) -> None:
    """kill -9 of the API while clients upload; what it answered is there, the rest whole or not."""
    site, chance = round_.site, round_.chance
    api, url = site.start_api()
    load = round_.begin()
    files = [load.some(chance.choice((*SMALL, *LONG))) for _ in range(200)]
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        load.client = client

        def upload(thread: int) -> None:
            for content in files[thread::4]:
                if load.try_to_add(content) != 200:
                    return

        with ThreadPoolExecutor(4) as pool:
            uploads = [pool.submit(upload, thread) for thread in range(4)]
            time.sleep(chance.uniform(0.05, 1.5))
            api.kill()
            for ended in uploads:
                ended.result()
    load.client = site.service.client
    answered = sum(document.answered for document in load.documents.values())
    round_.note = f"{answered} of {len(load.documents)} uploads answered"
    assert site.wait(site.settled), site.told()
    orphans = site.age_files()
    found = examine(site.service.resources, repair=True)
    assert found.count(Damage.ORPHAN_FILES) == len(orphans), found.shape()
    round_.note += f", {len(orphans)} files for the doctor"


def disk_full(round_: Round) -> None:
    """The disk of the files is full: uploads are refused, what was accepted waits and completes."""
    site = round_.site
    round_.ended |= {"failed"}
    if not site.small_disk:
        raise Unable("mounting a small disk needs root")
    load = round_.begin()
    site.end_workers()
    load.mix()
    with filled(site.service.settings.data_dir):
        site.heal()
        for lines in (1, 40):
            answer = load.try_to_add(load.some(lines))
            assert answer == 503, answer
        assert site.wait(lambda: site.runs("failed", load) > 0), site.told()
        time.sleep(round_.chance.uniform(0.0, 2.0))
    refused = [d for d in load.documents.values() if not d.answered]
    for document in refused:
        del load.documents[document.name]
    load.disturb()
    round_.note = f"{len(refused)} uploads refused"


def clock_jumps(round_: Round) -> None:
    """The clock of one worker, or of all and of beat, is hours off and jumps; no lease is lost."""
    site, chance = round_.site, round_.chance
    everywhere = round_.number % 2 == 1
    first, second = chance.choice(((0, 7200), (0, -7200), (-4000, 80_000), (9000, -80_000)))
    site.set_clock(first)
    site.with_wrong_clock(2 if everywhere else 1, beat=everywhere)
    load = round_.begin()
    load.mix()
    round_.some_work()
    site.set_clock(second)
    load.disturb()
    site.service.flush_broker()  # now the sweep has to work, too
    assert site.wait(site.settled), site.told()
    site.set_clock(0)
    site.end_workers()
    if everywhere and site.beat is not None:
        site.beat.kill()
    round_.note = f"{'all' if everywhere else 'one'}: {first:+} s, then {second:+} s"


def provider_limits(round_: Round) -> None:
    """Three of ten calls to the embedding server are answered 429; documents wait, none fails."""
    site = round_.site
    round_.ended |= {"failed"}
    site.reference(dense=False)
    with Provider() as provider:
        provider.always(status(429, retry_after="0.1"), share=0.3, seed=round_.number)
        embedding = {
            "KB_EMBEDDING__PROVIDER": "openai",
            "KB_EMBEDDING__URL": f"{provider.url}/v1",
            "KB_EMBEDDING__MODEL": MODEL,
            "KB_EMBEDDING__RETRIES": "1",
            "KB_EMBEDDING__RETRY_BASE_S": "0.02",
        }
        site.forget_vectors()
        site.end_workers()
        for _ in range(2):
            site.start_worker(**embedding)
        api, url = site.start_api(**embedding)
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            load = round_.load = site.load(round_.chance, dense=True, client=client)
            load.mix(6, 4)
            load.disturb()
            assert site.wait(site.settled), site.told()
        load.client = site.service.client
        statuses = provider.statuses
        round_.note = f"{statuses[429]} of {statuses.total()} calls answered 429"
        api.kill()
        site.end_workers()


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
                there = Counter(broker.lrange(queue, 0, -1))  # with copies of the time before
                copies = [message for message, n in there.items() for _ in range(5 - n)]
                if copies:
                    broker.rpush(queue, *copies)
                    copied += len(copies)
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
    "api killed": (api_killed, 12),
    "disk full": (disk_full, 6),
    "clock jumps": (clock_jumps, 8),
    "provider says 429": (provider_limits, 6),
}
"""Name -> what happens in a round, and how many rounds the long form has."""
