"""The double as a whole: an engine with two faces."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from tests.contracts.qdrant_double.engine import Engine
from tests.contracts.qdrant_double.faults import Faults
from tests.contracts.qdrant_double.rest import RestServer
from tests.contracts.qdrant_double.rpc import RpcServer


class Double:
    """A running server on free ports of 127.0.0.1; also a context manager.

    Args:
        directory: keeps the collections; one double at a time.
        version: what it says it is.
        api_key: what calls must bring.
        port: of REST; 0: any free one.
        most_bytes: of a REST request; the server's default is 32 MB.
        grpc_port: 0: any free one; None: no gRPC.
    """

    def __init__(
        self,
        directory: Path,
        *,
        version: str = "1.20.0",
        api_key: str | None = None,
        port: int = 0,
        most_bytes: int = 32 * 2**20,
        grpc_port: int | None = None,
    ) -> None:
        self.faults = Faults()
        self.engine = Engine(directory)
        self._rest = RestServer(
            self.engine,
            self.faults,
            version=version,
            api_key=api_key,
            port=port,
            most_bytes=most_bytes,
        )
        self._rpc = None
        if grpc_port is not None:
            self._rpc = RpcServer(
                self.engine, self.faults, version=version, api_key=api_key, port=grpc_port
            )
        self.url = self._rest.url
        self.grpc_port = self._rpc.port if self._rpc else 1
        """1 where nobody answers, when there is no gRPC."""

    @property
    def seen(self) -> list[tuple[str, int]]:
        """Operation and body length of every REST request, in order."""
        return self._rest.seen

    def close(self) -> None:
        """Stop serving and let go of the directory."""
        if self._rpc:
            self._rpc.close()
        self._rest.close()
        self.engine.close()

    def __enter__(self) -> Double:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
