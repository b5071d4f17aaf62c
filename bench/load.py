"""Mixed uploads and questions against a whole installation: speed, errors, queue, memory.

PostgreSQL, Redis, Qdrant (the tests' double unless `--qdrant-url` names a server), one API, workers
and beat are processes of their own. Clients upload small documents and ask questions at steady
rates. Every question by words is about a document that is known to be complete and must find it
first; anything else that a client did not expect is an error, too.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np

from bench.corpus import SEPARATOR, process_rule
from bench.installation import Installation, installation
from bench.report import Json, describe, latency, machine, table, write_json
from bench.serving import Api, add_dataset, search
from bench.words import sentence

GROWTH = 0.05
"""A program's memory counts as steady if its slope over the last two thirds of the run, carried on
for the length of the run, adds less than this share."""
_WARM_UP = 1 / 3
_MIX = ("fulltext", "vector", "hybrid", "list")
_DRAIN_S = 600.0
_SHOWN = 5
_AGES_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_OVERLAP = timedelta(seconds=2)
_COMPLETED = (
    "SELECT dataset_id, name, completed_at FROM documents"
    " WHERE indexing_status = 'completed' AND completed_at > %s"
)


@dataclass(frozen=True)
class Plan:
    """What is asked of the installation.

    Attributes:
        documents: most uploads; None: as many as there is time for.
        uploads_per_s, questions_per_s: steady rates of all clients together.
        backlog: uploads pause while so many documents wait.
        texts, words: segments of a document, words of a segment.
    """

    seconds: float = 600.0
    documents: int | None = None
    uploads_per_s: float = 8.0
    questions_per_s: float = 5.0
    clients: int = 4
    backlog: int = 200
    datasets: int = 4
    texts: int = 2
    words: int = 25
    sample_s: float = 1.0


@dataclass
class Record:
    """What happened; written to by all threads.

    Attributes:
        took_ms: by kind of request, from the moment it was due to its parsed answer.
        uploaded: how many documents were.
        known: dataset id and name of the documents that were seen to be complete.
        samples: one per second or so: seconds since the start, queue, MiB by program.
    """

    took_ms: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    uploaded: int = 0
    known: list[tuple[str, str]] = field(default_factory=list)
    samples: list[Json] = field(default_factory=list)
    left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, kind: str, ms: float) -> None:
        with self.lock:
            self.took_ms.setdefault(kind, []).append(ms)

    def failed(self, kind: str, reason: object) -> None:
        with self.lock:
            self.errors.append(f"{kind}: {reason}")


def measure(
    plan: Plan, *, cache_dir: Path, workers: int = 2, qdrant_url: str | None = None
) -> Json:
    """Run the plan on a fresh installation; the report."""
    with (
        tempfile.TemporaryDirectory(prefix="kb-load-") as scratch,
        installation(
            Path(scratch), models=cache_dir / "models", workers=workers, qdrant_url=qdrant_url
        ) as kb,
    ):
        return observe(kb, plan)


def observe(kb: Installation, plan: Plan) -> Json:
    """Run the plan on this installation; the report."""
    facts = machine()
    record, took_s, drained_s = drive(kb, plan)
    outcome, complaints = _outcome(kb, record), kb.complaints()
    return {
        "machine": facts,
        "plan": {**plan.__dict__, "workers": len(kb.workers())},
        "seconds": round(took_s, 1),
        "drain_s": round(drained_s, 1),
        **outcome,
        "documents_per_min": round(60 * record.uploaded / (took_s + drained_s), 1),
        "questions_per_s": round(_questions(record) / took_s, 2),
        "requests": {kind: latency(took) for kind, took in sorted(record.took_ms.items())},
        "errors": len(record.errors),
        "first_errors": record.errors[:_SHOWN],
        "complaints": len(complaints),
        "first_complaints": complaints[:_SHOWN],
        "queue": _queue(record.samples),
        "memory": {
            name: growth(record.samples, name) | {"ours": program.ours}
            for name, program in kb.programs.items()
        },
        "samples": record.samples,
    }


def steady(report: Json) -> bool:
    """Whether no program of kb's grew by as much as GROWTH."""
    return all(m["growth"] < GROWTH for m in report["memory"].values() if m["ours"])


# --- traffic -----------------------------------------------------------------------------------


def drive(kb: Installation, plan: Plan) -> tuple[Record, float, float]:
    """Let the clients loose.

    Returns:
        What happened, the seconds of traffic, the seconds from there until the queue was empty.
    """
    with kb.api() as api:
        datasets = [add_dataset(api, f"load-{n}") for n in range(plan.datasets)]
    record, started = Record(), time.monotonic()
    ends, over = started + plan.seconds, threading.Event()
    uploads = _Turns(plan.uploads_per_s, plan.documents)
    questions = _Turns(plan.questions_per_s, None)
    with ThreadPoolExecutor(2 * plan.clients + 1) as pool, kb.api() as api:
        sampling = pool.submit(_sample, kb, record, plan.sample_s, started, over)
        try:
            clients: list[Future[None]] = []
            for _ in range(plan.clients):
                clients.append(pool.submit(_upload_all, kb, plan, datasets, uploads, record, ends))
                clients.append(pool.submit(_ask_all, kb, questions, record, ends))
            for client in clients:
                client.result()
            took_s = time.monotonic() - started
            while _left(api) and time.monotonic() - started - took_s < _DRAIN_S:
                time.sleep(0.2)
            drained_s = time.monotonic() - started - took_s
        finally:
            over.set()
        sampling.result()
    return record, took_s, drained_s


class _Turns:
    """Numbers and moments at a steady rate, shared by the clients of a kind."""

    def __init__(self, per_s: float, most: int | None) -> None:
        self._per_s, self._most = per_s, most
        self._started, self._next = time.monotonic(), 0
        self._lock = threading.Lock()

    def take(self) -> tuple[int, float] | None:
        """The next number and when it is due; None when there are no more."""
        with self._lock:
            number = self._next
            if self._most is not None and number >= self._most:
                return None
            self._next += 1
        return number, self._started + number / self._per_s

    def go_on(self) -> float:
        """After a pause: no later turn is due before this moment, which is returned."""
        with self._lock:
            present = time.monotonic()
            self._started = max(self._started, present - self._next / self._per_s)
        return present


def _upload_all(
    kb: Installation,
    plan: Plan,
    datasets: Sequence[str],
    turns: _Turns,
    record: Record,
    ends: float,
) -> None:
    with kb.api() as api:
        while (turn := turns.take()) is not None and time.monotonic() < ends:
            number, due = turn
            _sleep_until(min(due, ends))
            if record.left >= plan.backlog:
                while record.left >= plan.backlog and time.monotonic() < ends:
                    time.sleep(0.1)
                due = turns.go_on()
            if time.monotonic() >= ends:
                break
            dataset, body = datasets[number % len(datasets)], _body(number, plan)
            if _timed(record, "upload", due, partial(_post, api, dataset, body)):
                with record.lock:
                    record.uploaded += 1


def _body(number: int, plan: Plan) -> Json:
    draw = random.Random(number)
    texts = [f"{sentence(draw, plan.words)} part{t} of doc{number}" for t in range(plan.texts)]
    return {
        "name": f"doc{number}",
        "text": SEPARATOR.join(texts),
        "process_rule": process_rule(texts),
    }


def _post(api: Api, dataset: str, body: Json) -> None:
    api.call("POST", f"/v1/datasets/{dataset}/document/create-by-text", body)


def _ask_all(kb: Installation, turns: _Turns, record: Record, ends: float) -> None:
    with kb.api() as api:
        while (turn := turns.take()) is not None and time.monotonic() < ends:
            number, due = turn
            _sleep_until(min(due, ends))
            if time.monotonic() >= ends:
                break
            if record.known:
                draw = random.Random(number)
                dataset, name = draw.choice(record.known)
                kind = _MIX[number % len(_MIX)]
                _timed(record, kind, due, partial(_ask, api, dataset, name, kind))


def _ask(api: Api, dataset: str, name: str, kind: str) -> None:
    """Raises: AssertionError: the answer is not what is known to be there."""
    if kind == "list":
        listed = api.call("GET", f"/v1/datasets/{dataset}/documents?limit=20")["data"]
        assert listed, f"no documents in {dataset}"
        return
    found = search(api, dataset, f"what is part1 of {name}", kind, top_k=5)
    names = [record["segment"]["document"]["name"] for record in found]
    assert names, f"nothing found for {name}"
    assert kind != "fulltext" or names[0] == name, f"{names} found for {name}"


def _timed(record: Record, kind: str, due: float, call: Callable[[], None]) -> bool:
    try:
        call()
    except (OSError, RuntimeError, AssertionError, KeyError, ValueError) as exc:
        record.failed(kind, f"{type(exc).__name__}: {exc}")
        return False
    record.took(kind, (time.monotonic() - due) * 1000)
    return True


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


# --- what is watched ---------------------------------------------------------------------------


def _sample(
    kb: Installation, record: Record, every_s: float, started: float, over: threading.Event
) -> None:
    at, seen = 0, _AGES_AGO
    with kb.api() as api:
        while not over.wait(max(0.0, started + at * every_s - time.monotonic())):
            at += 1
            record.left = _left(api)
            # Some time twice: what commits later may have completed earlier.
            completed = kb.query(_COMPLETED, seen)
            fresh = {(str(dataset), name) for dataset, name, _ in completed} - set(record.known)
            record.known.extend(sorted(fresh))
            seen = max([seen, *(when - _OVERLAP for _, _, when in completed)])
            memory = {name: program.resident_mb() for name, program in kb.programs.items()}
            record.samples.append(
                {"s": round(time.monotonic() - started, 1), "left": record.left, "mb": memory}
            )


def _left(api: Api) -> int:
    return int(api.call("GET", "/v1/status")["documents_left"])


def growth(samples: Sequence[Json], name: str) -> Json:
    """How a program's memory went: the least-squares slope after a warm-up of a third.

    `growth` is what that slope adds in a time as long as the run, as a share of the mean.
    """
    later = samples[int(len(samples) * _WARM_UP) :]
    times = np.array([sample["s"] for sample in later], dtype=np.float64)
    sizes = np.array([sample["mb"][name] for sample in later], dtype=np.float64)
    slope = float(np.polyfit(times, sizes, 1)[0]) if len(later) > 2 else 0.0
    run_s = samples[-1]["s"] if samples else 0.0
    mean = float(sizes.mean()) if len(later) else 0.0
    return {
        "first_mb": samples[0]["mb"][name] if samples else 0.0,
        "mean_mb": round(mean, 1),
        "last_mb": samples[-1]["mb"][name] if samples else 0.0,
        "slope_mb_per_min": round(60 * slope, 3),
        "growth": round(slope * run_s / mean, 4) if mean else 0.0,
    }


def _queue(samples: Sequence[Json]) -> Json:
    left = [sample["left"] for sample in samples] or [0]
    return {"mean": round(float(np.mean(left)), 1), "most": max(left), "last": left[-1]}


def _questions(record: Record) -> int:
    return sum(len(took) for kind, took in record.took_ms.items() if kind != "upload")


def _outcome(kb: Installation, record: Record) -> Json:
    """Every upload must be complete, and the index what the database says."""
    rows = kb.query("SELECT indexing_status FROM documents WHERE name LIKE 'doc%%'")
    states = Counter(str(state) for (state,) in rows)
    if missing := record.uploaded - states["completed"]:
        record.failed("outcome", f"{missing} documents are not completed: {dict(states)}")
    with kb.api() as api:
        healthy = bool(api.call("POST", "/v1/doctor")["healthy"])
    if not healthy:
        record.failed("outcome", "the doctor found something")
    return {"documents": dict(states), "doctor_healthy": healthy}


# --- the report --------------------------------------------------------------------------------


def show(report: Json) -> str:
    """The report as tables."""
    requests = [
        (kind, f["queries"], f["p50_ms"], f["p95_ms"], f["p99_ms"])
        for kind, f in report["requests"].items()
    ]
    memory = [
        (
            name if m["ours"] else f"({name})",
            m["first_mb"],
            m["mean_mb"],
            m["last_mb"],
            m["slope_mb_per_min"],
            f"{m['growth']:+.1%}",
        )
        for name, m in report["memory"].items()
    ]
    plan, queue = report["plan"], report["queue"]
    return "\n".join(
        [
            describe(report["machine"]),
            f"\n{plan['workers']} workers, {plan['clients']} clients of each kind; "
            f"{report['seconds']} s of traffic, {report['drain_s']} s until the "
            "queue was empty",
            f"{sum(report['documents'].values())} documents {report['documents']}, "
            f"{report['documents_per_min']} per minute; {report['questions_per_s']} questions/s",
            f"errors: {report['errors']} {report['first_errors'] or ''}",
            f"warnings in the logs: {report['complaints']} {report['first_complaints'] or ''}",
            f"doctor: {'healthy' if report['doctor_healthy'] else 'NOT healthy'}",
            f"queue: mean {queue['mean']}, most {queue['most']}, at the end {queue['last']}\n",
            table(("request", "number", "p50 ms", "p95 ms", "p99 ms"), requests),
            "",
            table(("memory, MiB", "first", "mean", "last", "per minute", "growth"), memory),
            f"kb's programs are {'steady' if steady(report) else 'NOT steady'}: growth below "
            f"{GROWTH:.0%} in a time as long as the run, by the slope after the first third",
        ]
    )


def main() -> None:
    """Run the load and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of traffic")
    parser.add_argument("--documents", type=int, help="most uploads")
    parser.add_argument("--uploads-per-s", type=float, default=Plan.uploads_per_s)
    parser.add_argument("--questions-per-s", type=float, default=Plan.questions_per_s)
    parser.add_argument("--clients", type=int, default=Plan.clients, help="of each kind")
    parser.add_argument(
        "--backlog", type=int, default=Plan.backlog, help="uploads pause while so many wait"
    )
    parser.add_argument("--texts", type=int, default=Plan.texts, help="segments of a document")
    parser.add_argument("--words", type=int, default=Plan.words, help="words of a segment")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--qdrant-url", help="of a real server, instead of the tests' double")
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    plan = Plan(
        seconds=60 * options.minutes,
        documents=options.documents,
        uploads_per_s=options.uploads_per_s,
        questions_per_s=options.questions_per_s,
        clients=options.clients,
        backlog=options.backlog,
        texts=options.texts,
        words=options.words,
    )
    report = measure(
        plan,
        cache_dir=options.cache_dir,
        workers=options.workers,
        qdrant_url=options.qdrant_url,
    )
    print(show(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
