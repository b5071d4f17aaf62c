"""`kb worker`: a process of the service size, which is started by its name."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from typing import TYPE_CHECKING, NoReturn

import click

from kb.cli.client import load_settings
from kb.cli.options import CliError, Target, examples, target_options

if TYPE_CHECKING:
    from kb.settings import Metrics

_QUEUES = ("interactive", "bulk", "maintenance")


@click.command(
    epilog=examples(
        "kb worker --concurrency 4",
        "kb worker --queues interactive --pool threads",
        "kb worker --queues bulk,maintenance",
    )
)
@click.option(
    "--pool",
    type=click.Choice(["prefork", "threads"]),
    default="prefork",
    show_default=True,
    help="Processes, each with a model of its own; or threads that share one.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Documents in work at once.  [default: one for each processor]",
)
@click.option(
    "--queues",
    default=",".join(_QUEUES),
    show_default=True,
    metavar="NAMES",
    help="Which queues to serve: small files, large files, everything else.",
)
@click.option(
    "--events/--no-events",
    "-E/ ",
    default=None,
    help="Tell monitors such as Flower what is done.  [env: KB_REDIS__EVENTS; default: events]",
)
@click.option("--name", metavar="NAME", help="Name among the workers.  [default: celery@HOST]")
@target_options(network=False)
@click.pass_obj
def worker(
    target: Target,
    pool: str,
    concurrency: int | None,
    queues: str,
    events: bool | None,
    name: str | None,
) -> None:
    """Work on documents, together with any number of other workers.

    Needs KB_REDIS_URL, KB_DATABASE_URL and KB_QDRANT__URL, the same as for `kb serve`. SIGTERM or
    Ctrl-C ends the process cleanly: documents in work are handed back after the batch that is
    under way, and another worker goes on with them. Keep one `kb beat` running beside the workers.
    """
    asked = [part.strip() for part in queues.split(",") if part.strip()]
    unknown = [part for part in asked if part not in _QUEUES]
    if unknown or not asked:
        raise CliError(
            f"no queue {', '.join(map(repr, unknown or [queues]))}; known: {', '.join(_QUEUES)}"
        )
    count = concurrency or os.cpu_count() or 1
    settings = load_settings(target)  # a mistake in them is told in one line
    if pool == "prefork" and "threads" not in settings.embedding.model_fields_set:
        # Each child process embeds with its share of the processors.
        os.environ["KB_EMBEDDING__THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    if events is not None:
        os.environ["KB_REDIS__EVENTS"] = str(events).lower()
    _prepare_metrics(settings.metrics, several=pool == "prefork")
    arguments = [f"--pool={pool}", f"--concurrency={count}", f"--queues={','.join(asked)}"]
    if name is not None:
        arguments.append(f"--hostname={name if '@' in name else f'{name}@%h'}")
    become(target, "worker", [*arguments, "--without-mingle"])


def _prepare_metrics(metrics: Metrics, *, several: bool) -> None:
    """Raises: CliError: the port of the metrics is taken, or the address is not this machine's."""
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    if metrics.worker_port is None:
        return
    address = (metrics.worker_host, metrics.worker_port)
    try:
        socket.create_server(address).close()
    except OSError as exc:
        reason = (exc.strerror or str(exc)).partition(" (")[0]
        raise CliError(
            f"cannot show metrics on {address[0]} port {address[1]}: {reason}; give each worker of "
            "a machine a KB_METRICS__WORKER_PORT of its own"
        ) from exc
    if several:  # before the library is imported
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="kb-metrics-")


def become(target: Target, command: str, arguments: list[str]) -> NoReturn:
    """This process becomes `python -m workers ...`, so that signals reach that."""
    if target.data_dir is not None:
        os.environ["KB_DATA_DIR"] = str(target.data_dir)
    # Quiet: without Celery's banner; what there is to say is said in lines of the log.
    program = [sys.executable, "-m", "workers", "--quiet", command, *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, program)
