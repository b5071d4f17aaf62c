"""What can go wrong in a pipeline.

PipelineError                 the document's or the definition's fault; not retried
├── GraphError                a definition cannot run: unknown kind, missing edge, misfit, loop
├── NodeError                 a node cannot do its work on this value
│   └── ExtractionError       a file cannot be read; `code` says how it is bad
├── Cancelled                 the caller asked the run to stop
└── TransientError            the world's fault for now; safe to retry
    └── RateLimited           the other side asks to come later; that is no failed attempt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.types import Vector


class PipelineError(Exception):
    """The document's or the definition's fault; retrying changes nothing.

    Attributes:
        code: machine-readable reason, lower snake case, stored with a failed document.
        node_id, kind: the node in which it happened, set by the engine; None outside a run.
    """

    code = "pipeline_error"
    node_id: str | None = None
    kind: str | None = None

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a definition, and what would be right.

    Attributes:
        node_id: the node it is about; None for the definition as a whole.
        field: where in the node or definition: `kind`, `options.max_chars`, `edges[2].to`.
    """

    node_id: str | None
    field: str
    message: str

    def __str__(self) -> str:
        where = f"node {self.node_id!r}, {self.field}" if self.node_id is not None else self.field
        return f"{where}: {self.message}"


class GraphError(PipelineError):
    """A pipeline definition that cannot run; found before anything runs.

    Attributes:
        problems: everything that was found, in the order of the definition; may be empty.
    """

    code = "invalid_pipeline"

    def __init__(
        self, message: str, *, code: str | None = None, problems: Sequence[Problem] = ()
    ) -> None:
        super().__init__(message, code=code)
        self.problems = tuple(problems)


class NodeError(PipelineError):
    """A node cannot do its work on this value."""

    code = "node_failed"


class ExtractionError(NodeError):
    """A file whose text cannot be had.

    `code` is one of: `empty_file`, `no_text`, `encrypted`, `corrupt`, `unsupported_file_type`,
    `scanned`, `limit_exceeded`.
    """

    code = "extraction_failed"


class Cancelled(PipelineError):
    """The caller asked the run to stop; it may be started again."""

    code = "cancelled"


class TransientError(PipelineError):
    """A provider or store did not answer now; the same call may succeed later.

    Attributes:
        retry_after_s: how long the other side asked to wait, when it did.
        done: what was embedded before it failed, by position in the call's texts, so that it need
            not be embedded again.
    """

    code = "temporarily_unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
        self.done: Mapping[int, Vector] = {}


class RateLimited(TransientError):
    """The other side is well and asks to come later; that is no failed attempt."""

    code = "rate_limited"
