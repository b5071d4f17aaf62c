"""A Qdrant server for tests: its REST and gRPC calls, answered by the real engine.

Only what our adapter uses is served. Everything is validated as strictly as the client's own
models can: unknown fields, parameters, routes and options that the double would not honour are
refused with 400, so the adapter cannot drift from the protocol. Filters need a payload index, as
in the server's strict mode. One shard per collection, in a directory; what was acknowledged
survives a kill.

It can be told to misbehave, here (`double.faults`) or by `PUT /double/faults` from another
process. As a program: `python -m tests.contracts.qdrant_double DIRECTORY [--port N] [--grpc N]`.
"""

from tests.contracts.qdrant_double.double import Double
from tests.contracts.qdrant_double.faults import KINDS, Faults

__all__ = ["KINDS", "Double", "Faults"]
