"""What every benchmark says the same way: the machine, latencies, memory, tables, JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

Json = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")

_PACKAGES = (
    "qdrant-edge-py", "onnxruntime", "sentence-transformers", "torch", "rank-bm25", "numpy",
    "fastapi", "uvicorn", "sqlalchemy",
)  # fmt: skip


def machine() -> Json:
    """Where the figures come from; `load_1m` is the load average as the run began."""
    return {
        "cpu": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(_kilobytes("/proc/meminfo", "MemTotal") / 2**20, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def describe(facts: Json) -> str:
    """`machine()` in one line; a load that disturbs the figures is pointed out."""
    line = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, "
        f"Python {facts['python']}, {facts['system']}"
    )
    busy = facts["load_1m"] > 0.5
    return line + (f"\nload {facts['load_1m']} at the start: the machine is busy" if busy else "")


def latency(took_ms: Sequence[float]) -> Json:
    """Median, 95th and 99th percentile and mean of single calls, in milliseconds."""
    return {
        "p50_ms": round(float(np.percentile(took_ms, 50)), 3),
        "p95_ms": round(float(np.percentile(took_ms, 95)), 3),
        "p99_ms": round(float(np.percentile(took_ms, 99)), 3),
        "mean_ms": round(float(np.mean(took_ms)), 3),
        "queries": len(took_ms),
    }


def peak_mb(pid: int | None = None) -> float:
    """Most memory that a running process (None: this one) has held at once, in MiB.

    From /proc, not from `ru_maxrss`: that of a child starts with what its parent had held.
    """
    return round(_kilobytes(f"/proc/{pid or 'self'}/status", "VmHWM") / 1024, 1)


def resident_mb(pid: int | None = None) -> float:
    """Memory that a running process holds now, in MiB; pages of mapped files count."""
    return round(_kilobytes(f"/proc/{pid or 'self'}/status", "VmRSS") / 1024, 1)


def cpu_s(pid: int) -> float:
    """Processor time that a running process has used so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A running process and all that it started, directly or not, as far as they run."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *(p for child in listed.split() for p in family(int(child)))]


def disk_mb(path: Path) -> float:
    """What a file or everything below a directory takes on the disk, in MiB; holes do not count."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_blocks for file in files) * 512 / 2**20, 1)


def in_child(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work` in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as needed; the first to the left, the others to the right."""
    lines = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def write_json(path: Path, report: Json) -> None:
    """Keep a report, indented."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _line(file: str, name: str) -> str:
    with open(file, encoding="utf-8") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _kilobytes(file: str, name: str) -> int:
    return int(_line(file, name).split()[0])
