"""BlobStore in a bucket of an S3-compatible object store."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from kb.adapters.blob_checks import check_blob_key, is_blob_key
from kb.errors import Misconfigured, NotFound, StoreUnavailable
from kb.settings import Blobs

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_STORE = "object store"
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_LIST = "this also stands for a missing object when the credentials lack s3:ListBucket"
_ADVICE = {
    "403": _LIST,
    "AccessDenied": _LIST,
    "NoSuchBucket": "make the bucket, or name another in KB_BLOBS__BUCKET",
}


class S3Blobs:
    """Objects below a prefix; a put is atomic, and durable as the store promises.

    Opening asks nothing of the store. Parts of a large blob whose writer was killed are invisible
    here; a rule of the bucket (AbortIncompleteMultipartUpload) removes them.

    Raises:
        Misconfigured: boto3 is not installed.
        ValueError: no bucket is named, or the SDK does not take an option.
    """

    def __init__(self, options: Blobs) -> None:
        if options.bucket is None:
            raise ValueError("no bucket; name one in KB_BLOBS__BUCKET")
        self._options = options
        self._bucket = options.bucket
        folder = options.prefix.strip("/")
        self._prefix = f"{folder}/" if folder else ""
        self._client = _client(options)
        self._extra: dict[str, Any] = {}
        if options.encryption:
            self._extra["ServerSideEncryption"] = options.encryption
        if options.kms_key_id:
            self._extra["SSEKMSKeyId"] = options.kms_key_id

    def put(self, key: str, data: bytes) -> None:
        """See `kb.ports.BlobStore`."""
        name = self._name(key)
        with self._translated("put"):
            if len(data) <= self._options.part_bytes:
                self._client.put_object(Bucket=self._bucket, Key=name, Body=data, **self._extra)
            else:
                self._put_parts(name, data)

    def get(self, key: str) -> bytes:
        """See `kb.ports.BlobStore`."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        name = self._name(key)
        with self._translated("get", key):
            # The SDK tries the request again, but not the reading of its answer.
            for left in reversed(range(self._options.max_attempts)):
                answer = self._client.get_object(Bucket=self._bucket, Key=name)
                try:
                    # Not the body as a context manager: that gives the raw stream, whose errors
                    # are urllib3's.
                    with contextlib.closing(answer["Body"]) as body:
                        return body.read()
                except (IncompleteReadError, HTTPClientError):
                    if not left:
                        raise
        raise AssertionError("max_attempts is at least 1")

    def exists(self, key: str) -> bool:
        """See `kb.ports.BlobStore`."""
        name = self._name(key)
        with self._translated("exists", key):
            try:
                self._client.head_object(Bucket=self._bucket, Key=name)
                return True
            except self._client.exceptions.ClientError as exc:
                if _code(exc) not in _MISSING:
                    raise
            # An answer to HEAD does not say what is missing. Without its bucket every blob would
            # seem gone, so that is an error and not a no.
            self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1, Prefix=name)
            return False

    def delete(self, key: str) -> None:
        """See `kb.ports.BlobStore`."""
        name = self._name(key)
        with contextlib.suppress(NotFound), self._translated("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def keys(self, prefix: str = "", *, older_than_s: float = 0.0) -> Iterator[str]:
        """See `kb.ports.BlobStore`; age is by the store's clock, at the time of listing.

        Ascending as S3 promises for general-purpose buckets (UTF-8 order); not in directory
        buckets (S3 Express). Objects that have no name of ours are left out.
        """
        if prefix and not is_blob_key(f"{prefix.removesuffix('/')}"):
            return
        with self._translated("keys"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                newest = _server_time(page) - timedelta(seconds=older_than_s)
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self._prefix)
                    old = older_than_s <= 0 or item["LastModified"] <= newest
                    if old and is_blob_key(key):
                        yield key

    def close(self) -> None:
        """See `kb.ports.BlobStore`."""
        self._client.close()

    def _name(self, key: str) -> str:
        check_blob_key(key)
        return self._prefix + key

    def _put_parts(self, name: str, data: bytes) -> None:
        from boto3.s3.transfer import TransferConfig

        size = self._options.part_bytes
        self._client.upload_fileobj(
            io.BytesIO(data),
            self._bucket,
            name,
            ExtraArgs=self._extra or None,
            Config=TransferConfig(
                multipart_threshold=size,
                # A blob has at most 10,000 parts.
                multipart_chunksize=max(size, math.ceil(len(data) / 10_000)),
                max_concurrency=4,
                preferred_transfer_client="classic",
            ),
        )

    @contextlib.contextmanager
    def _translated(self, operation: str, key: str | None = None) -> Iterator[None]:
        """Raises: NotFound: the store has no such object. StoreUnavailable: anything else."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as exc:
            code = _code(exc)
            if key is not None and code in _MISSING:
                raise NotFound("blob", key) from exc
            where = self._options.endpoint_url or "Amazon S3"
            reason = f"bucket {self._bucket!r} at {where}: {exc}"
            advice = _ADVICE.get(code)
            raise StoreUnavailable(
                _STORE, operation, f"{reason}; {advice}" if advice else reason
            ) from exc
        except (BotoCoreError, Boto3Error) as exc:
            raise StoreUnavailable(_STORE, operation, str(exc)) from exc


def _client(options: Blobs) -> S3Client:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as exc:
        raise Misconfigured(
            "KB_BLOBS__BUCKET is set, but boto3 is not installed; "
            "install it with: pip install 'kb-engine[service]'"
        ) from exc
    session = boto3.session.Session(  # of our own: the SDK's default one is not thread-safe
        aws_access_key_id=_plain(options.access_key_id),
        aws_secret_access_key=_plain(options.secret_access_key),
        region_name=options.region,
    )
    return session.client(
        "s3",
        endpoint_url=options.endpoint_url,
        config=Config(
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            retries={"total_max_attempts": options.max_attempts, "mode": "standard"},
            max_pool_connections=options.max_connections,
            request_checksum_calculation=options.checksums,
            response_checksum_validation=options.checksums,
            s3={"addressing_style": "path" if options.path_style else "auto"},
        ),
    )


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _code(exc: Any) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _server_time(page: Any) -> datetime:
    """The store's clock when it answered: what it compares with was written by that clock."""
    stamp = page["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(stamp) if stamp else datetime.now(UTC)
