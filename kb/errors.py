"""What can go wrong at a caller's request.

KBError                         every public error: `code`, `message`, `status`
├── Unauthorized        401     no or wrong API key
├── Forbidden           403
├── NotFound            404
├── InvalidParam        400     a value that cannot be used; the message names it and the remedy
│   ├── BadRequest      400     the body is not JSON
│   ├── InvalidArchive  400     no archive of a dataset, of another version, cut off or damaged
│   ├── NoFileUploaded, TooManyFiles, FilenameMissing, InvalidMetadata
│   ├── BadSegments     400     new segments that are none; the body is `{"error"}`
│   ├── InvalidAction   400     the document is not in a state for it, or there is no such action
│   └── DocumentIndexing, DocumentFinished, ProviderNotInitialized
├── Conflict            409
│   └── DatasetNameDuplicate, ModelExists, ModelInUse, ExternalApiInUse
├── FileTooLarge        413
├── BodyTooLarge        413     a JSON body beyond the limit
├── ArchiveTooLarge     413     an archive, or what it unpacks to, beyond the limit
├── UnsupportedFileType 415
├── Unprocessable       422     the body of POST/PATCH /datasets or of a tag does not validate
├── ArchivedDocument    403
├── Misconfigured       500     settings that do not go together; the process does not start
│   └── SecretUnreadable        a stored secret was sealed with a key that this process lacks
├── ExternalKnowledgeFailed 502 a service behind an external dataset gave no answer, or no good one
└── Unavailable         503     a store is busy, full or gone; safe to retry
    ├── DataDirectoryInUse      another process holds the data directory
    └── StoreUnavailable        the index did not answer
"""

from __future__ import annotations

from typing import ClassVar


class KBError(Exception):
    """A public error; becomes `{"code", "message", "status"}` on the wire."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_server_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Unauthorized(KBError):
    """The API key is missing, malformed or unknown."""

    status, code = 401, "unauthorized"


class Forbidden(KBError):
    """The key is known but may not do this."""

    status, code = 403, "forbidden"


class ArchivedDocument(Forbidden):
    """Archived documents cannot be deleted."""

    code = "archived_document_immutable"


_LISTS = {
    "dataset": "GET /v1/datasets",
    "document": "GET /v1/datasets/{dataset_id}/documents",
    "batch": "GET /v1/datasets/{dataset_id}/documents",
    "webhook": "GET /v1/webhooks",
    "metadata field": "GET /v1/datasets/{dataset_id}/metadata",
    "query": "GET /v1/queries",
    "external knowledge API": "GET /v1/datasets/external-knowledge-api",
    "model": "GET /v1/models",
    "tag": "GET /v1/datasets/tags",
}


class NotFound(KBError):
    """No such thing in this workspace, or not for this key."""

    status, code = 404, "not_found"

    def __init__(self, noun: str, key: object) -> None:
        seen = f"; {_LISTS[noun]} lists what this key opens" if noun in _LISTS else ""
        super().__init__(f"no {noun} {str(key)!r}{seen}")
        self.noun, self.key = noun, key


class NoPipeline(NotFound):
    """The dataset is filled by uploads, not by a knowledge pipeline."""

    def __init__(self, dataset: str) -> None:
        KBError.__init__(
            self,
            f"dataset {dataset!r} has no pipeline; fill it with "
            "POST /v1/datasets/{dataset_id}/document/create-by-file or create-by-text",
        )


class InvalidParam(KBError):
    """A value that cannot be used."""

    status, code = 400, "invalid_param"


class BadRequest(InvalidParam):
    """The body is not what the route reads."""

    code = "bad_request"


class InvalidArchive(InvalidParam):
    """The file is no archive of a dataset that can be taken in."""

    code = "invalid_archive"


class NoFileUploaded(InvalidParam):
    """The multipart body has no part named `file`."""

    code = "no_file_uploaded"


class TooManyFiles(InvalidParam):
    """The multipart body has more than one `file`."""

    code = "too_many_files"


class FilenameMissing(InvalidParam):
    """The `file` part has no file name."""

    code = "filename_not_exists_error"


class InvalidMetadata(InvalidParam):
    """The query value `metadata` is not one of all, only, without."""

    code = "invalid_metadata"


class DocumentIndexing(InvalidParam):
    """The document is being processed."""

    code = "document_indexing"


class DocumentFinished(InvalidParam):
    """There is nothing left to pause, resume or cancel."""

    code = "document_already_finished"


class InvalidAction(InvalidParam):
    """The state of the document does not allow this, or there is no such action."""

    code = "invalid_action"


class ProviderNotInitialized(InvalidParam):
    """The model that this needs is not configured."""

    code = "provider_not_initialize"


class BadSegments(InvalidParam):
    """What was sent as new segments are none; the body of this error is `{"error": message}`."""


class Conflict(KBError):
    """The state does not allow this."""

    status, code = 409, "conflict"


class DatasetNameDuplicate(Conflict):
    """Another dataset of the workspace has this name."""

    code = "dataset_name_duplicate"


class ModelExists(Conflict):
    """A model of this type, provider and name is configured already."""

    code = "model_exists"


class ModelInUse(Conflict):
    """Something needs the model as it is."""

    code = "model_in_use"


class ExternalApiInUse(Conflict):
    """Datasets are bound to the external knowledge API."""

    code = "external_knowledge_api_in_use"


class FileTooLarge(KBError):
    """The file is larger than the limit."""

    status, code = 413, "file_too_large"


class BodyTooLarge(KBError):
    """The JSON body is larger than the limit."""

    status, code = 413, "request_entity_too_large"


class ArchiveTooLarge(KBError):
    """The archive, or what it unpacks to, is larger than the limit."""

    status, code = 413, "archive_too_large"


class UnsupportedFileType(KBError):
    """No extractor reads this type."""

    status, code = 415, "unsupported_file_type"


class Unprocessable(KBError):
    """The body does not validate; `message` is a JSON list of the validator's errors."""

    status, code = 422, "unprocessable_entity"


class Misconfigured(KBError):
    """Settings that do not go together, or cannot be used here; the message names them."""

    code = "misconfigured"


class SecretUnreadable(Misconfigured):
    """A stored secret was sealed with a key that this process does not have."""

    code = "secret_unreadable"


class ExternalKnowledgeFailed(KBError):
    """A service that holds a dataset's knowledge did not answer, or not as the contract has it."""

    status, code = 502, "external_knowledge_failed"


class Unavailable(KBError):
    """Not now; safe to retry."""

    status, code = 503, "service_unavailable"


class DataDirectoryInUse(Unavailable):
    """Another process holds the data directory."""

    code = "data_directory_in_use"


class StoreUnavailable(Unavailable):
    """The index did not answer; safe to retry."""

    code = "store_unavailable"

    def __init__(self, store: str, operation: str, reason: str = "") -> None:
        super().__init__(f"{store} failed at {operation}" + (f": {reason}" if reason else ""))
        self.store, self.operation = store, operation
