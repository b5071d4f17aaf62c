"""What can go wrong at a call of the client."""

from __future__ import annotations

from kb.client.wire import Json


class ClientError(Exception):
    """The server did not do what was asked; the message says why and what would help."""


class Unreachable(ClientError):
    """No kb server answers at this address; may be retried."""


class ApiError(ClientError):
    """The server refused.

    Attributes:
        status: of HTTP.
        code: machine-readable reason, such as `invalid_param`.
    """

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Missing(ClientError):
    """No dataset or document has this name; the message names those that exist."""


class IngestionFailed(ClientError):
    """The document was accepted but cannot be indexed.

    Attributes:
        document: as the server shows it, with `error_code` and `error`.
    """

    def __init__(self, message: str, document: Json) -> None:
        super().__init__(message)
        self.document = document
