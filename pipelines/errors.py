"""What can go wrong in a pipeline.

    PipelineError                 the document's or the definition's fault; not retried
    ├── GraphError                a definition cannot run: unknown kind, missing edge, misfit, loop
    ├── NodeError                 a node cannot do its work on this value
    │   └── ExtractionError       a file cannot be read; `code` says how it is bad
    └── TransientError            the world's fault for now; safe to retry
"""


class PipelineError(Exception):
    """The document's or the definition's fault; retrying changes nothing.

    Attributes:
        code: machine-readable reason, lower snake case, stored with a failed document.
    """

    code = "pipeline_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class GraphError(PipelineError):
    """A pipeline definition that cannot run; found before anything runs."""

    code = "invalid_pipeline"


class NodeError(PipelineError):
    """A node cannot do its work on this value."""

    code = "node_failed"


class ExtractionError(NodeError):
    """A file whose text cannot be had.

    `code` is one of: `empty_file`, `no_text`, `encrypted`, `corrupt`, `unsupported_file_type`,
    `scanned`, `limit_exceeded`.
    """

    code = "extraction_failed"


class TransientError(PipelineError):
    """A provider or store did not answer now; the same call may succeed later.

    Attributes:
        retry_after_s: how long the other side asked to wait, when it did.
    """

    code = "temporarily_unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
