"""The double as a process: prints its URL, serves until it is told to stop."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from tests.contracts.qdrant_double.double import Double

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("directory", type=Path)
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--grpc", type=int, default=None)
parser.add_argument("--version", default="1.20.0")
given = parser.parse_args()
# Before any thread starts, so that all of them leave the signals to sigwait.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
with Double(
    given.directory, port=given.port, grpc_port=given.grpc, version=given.version
) as double:
    print(double.url, flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
