"""Every environment variable, typed, with units in the name and its default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class Embedding(BaseModel):
    """The embedding model that datasets use unless they name another: in this process, or a server
    that speaks OpenAI's embeddings API or that of text-embeddings-inference (TEI)."""

    model_config = ConfigDict(frozen=True)

    provider: Literal["local", "openai", "tei"] = "local"
    """A model directory in this process; OpenAI or a server like it (vLLM, Ollama, LocalAI,
    Azure); a TEI server."""
    model_path: Path | None = None
    """Local: a sentence-transformers model directory; None is the packaged all-MiniLM-L6-v2."""
    cache_dir: Path | None = None
    """Local: keeps the model as exported to ONNX; None: `models` in the data directory."""
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, gt=0)
    """Local: mini-batches that are embedded at once; by default one for each core."""
    batch_size: int = Field(default=8, gt=0, le=1024)
    """Local: texts of similar length that are embedded together by one thread."""
    niceness: int = Field(default=10, ge=0, le=19)
    """Added to the embedding threads' niceness, so that queries come first."""
    int8_queries: bool = True
    """Local: embed queries with weights of 8 bits, in half the time and 59 MB more memory; the
    cosine to what float32 gives is 0.999, nDCG the same. Documents are embedded in float32."""
    url: str | None = Field(default=None, pattern=r"^https?://[^\s/]")
    """Server: `https://HOST/v1` (OpenAI), `http://HOST:PORT` (TEI), or all of an address that ends
    in `/embeddings`, query included (Azure); None: OpenAI's own, https://api.openai.com/v1."""
    model: str | None = Field(default=None, min_length=1, max_length=200)
    """Server: the model's name. It names the collection, too: another model needs another name."""
    api_key: SecretStr | None = None
    """Server: its key, if it asks for one."""
    api_key_header: str = Field(default="Authorization", pattern=r"^[A-Za-z0-9-]{1,64}$")
    """Server: takes the key, after `Bearer` if it is Authorization; Azure wants `api-key`."""
    dimensions: int | None = Field(default=None, gt=0, le=65_536)
    """Server: length of its vectors; None: it is asked once."""
    send_dimensions: bool = False
    """Server: ask for vectors of length `dimensions`; only for models that can be shortened."""
    max_tokens: int | None = Field(default=None, gt=0, le=1_000_000)
    """Server: a longer text is cut there. None: TEI is asked, others are taken to read 8192;
    without TEI tokens are estimated, four ASCII characters each, or one other character."""
    query_prefix: str | None = Field(default=None, max_length=2000)
    """Server: put before each query, such as `query: ` for the E5 models."""
    document_prefix: str | None = Field(default=None, max_length=2000)
    """Server: put before each text of a document; another one makes another collection."""
    request_texts: int = Field(default=64, gt=0, le=2048)
    """Server: texts per request at most; fewer where TEI says so."""
    request_chars: int = Field(default=200_000, gt=0)
    """Server: characters per request at most, unless a single text has more."""
    max_requests: int = Field(default=4, gt=0, le=256)
    """Server: requests for documents at once, in this process; queries do not count."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Server: longest silence within a request for documents."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Server: how long a new connection may take."""
    query_timeout_s: float = Field(default=10.0, gt=0)
    """Server: how long a query may take to be embedded, all attempts together."""
    retries: int = Field(default=5, ge=0, le=50)
    """Server: attempts after the first one that fails for a transient reason; a query has two."""
    retry_base_s: float = Field(default=0.5, ge=0)
    """Server: wait before the second attempt; doubles with each one, with some chance in it."""
    retry_max_s: float = Field(default=10.0, ge=0)
    """Server: longest wait within a call; if it asks for a longer one, the document waits in its
    queue instead."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Embedding:
        if self.provider == "local":
            return self
        if self.model is None:
            raise ValueError(f"provider {self.provider!r} needs a model; set KB_EMBEDDING__MODEL")
        if self.provider == "tei" and self.url is None:
            raise ValueError("provider 'tei' needs a server; set KB_EMBEDDING__URL")
        if self.send_dimensions and self.dimensions is None:
            raise ValueError("send_dimensions needs a number; set KB_EMBEDDING__DIMENSIONS")
        return self


class Database(BaseModel):
    """How this process uses a database server; SQLite needs none of it."""

    pool_size: int = Field(default=10, gt=0)
    """Connections kept open."""
    pool_most: int = Field(default=40, gt=0)
    """Connections open at once; all processes together stay below the server's limit."""
    pool_timeout_s: float = Field(default=30.0, gt=0)
    """How long work waits for a free connection."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """How long a new connection may take."""
    idle_transaction_s: float = Field(default=120.0, gt=0)
    """A transaction whose process froze or vanished is ended after this long, and its locks with
    it; no transaction of ours is silent for seconds."""
    lock_timeout_s: float = Field(default=30.0, gt=0)
    """How long a statement waits for a row that another transaction changes."""


class Qdrant(BaseModel):
    """A Qdrant server or cluster that keeps the index; needs the extra `service`."""

    model_config = ConfigDict(frozen=True)

    url: str | None = Field(default=None, pattern=r"^https?://[^\s/]")
    """`http://HOST:6333`; None: the index is kept in the data directory, by this process."""
    api_key: SecretStr | None = None
    """Of the Qdrant server, if it asks for one."""
    prefer_grpc: bool = True
    """Speak gRPC where the server offers it, REST otherwise."""
    grpc_port: int = Field(default=6334, gt=0, le=65535)
    """Of the same host."""
    timeout_s: int = Field(default=30, gt=0, le=3600)
    """Of one attempt at a call."""
    retries: int = Field(default=4, ge=0, le=20)
    """Attempts after the first one that fails for a transient reason."""
    retry_base_s: float = Field(default=0.2, ge=0)
    """Wait before the second attempt; doubles with each further one, with some chance in it."""
    retry_max_s: float = Field(default=10.0, ge=0)
    """Longest wait; also when the server asks for a longer one."""
    collection_prefix: str = Field(default="kb-", pattern=r"^[A-Za-z0-9_-]{0,50}$")
    """Before the names of our collections, so that several installations can share a server."""
    shard_number: int = Field(default=1, gt=0, le=1024)
    """Shards of a new collection. With more than one, BM25 statistics are those of each shard."""
    replication_factor: int = Field(default=1, gt=0, le=64)
    """Copies of each shard of a new collection."""
    write_consistency_factor: int = Field(default=1, gt=0, le=64)
    """Copies that must have a write before it counts as done."""
    write_ordering: Literal["weak", "medium", "strong"] = "medium"
    """Through which replica writes go: any, an elected one, or always the same one."""
    batch_bytes: int = Field(default=16_000_000, ge=100_000, le=1_000_000_000)
    """Largest request; a server takes 32 MB over REST unless it is told otherwise."""
    batch_points: int = Field(default=1000, gt=0, le=10_000)
    """Points per request at most."""
    full_scan_kb: int = Field(default=100_000, gt=0)
    """Vectors that a query compares one by one instead of walking the graph (new collections):
    100,000 are 65,000 vectors of 384 dimensions, per segment."""
    hnsw_ef: int = Field(default=128, gt=0, le=10_000)
    """Candidates that a walk of the graph keeps: more are slower and miss less."""
    exact: bool = False
    """Compare every vector of the dataset, whatever its size."""

    @model_validator(mode="after")
    def _fits(self) -> Qdrant:
        if self.write_consistency_factor > self.replication_factor:
            raise ValueError(
                f"write_consistency_factor is {self.write_consistency_factor}, but there are only "
                f"{self.replication_factor} copies; raise replication_factor"
            )
        return self


class Blobs(BaseModel):
    """An S3-compatible object store that keeps the files; needs the extra `service`."""

    model_config = ConfigDict(frozen=True)

    bucket: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,62}$")
    """It must exist; None: files are kept in the data directory."""
    prefix: str = Field(default="kb", pattern=r"^[A-Za-z0-9._/-]{0,200}$")
    """Folder in the bucket, `/` for none; all below it belongs to this installation alone."""
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://[^\s/]")
    """`https://HOST:PORT`; None: Amazon S3."""
    region: str | None = None
    """None: as the AWS SDK finds it, in the end us-east-1."""
    access_key_id: SecretStr | None = None
    """None: as the AWS SDK finds it (environment, profile, role of the machine)."""
    secret_access_key: SecretStr | None = None
    """Belongs to `access_key_id`."""
    path_style: bool = False
    """`HOST/BUCKET/KEY` instead of `BUCKET.HOST/KEY`; most self-hosted stores want it."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """How long a new connection may take."""
    read_timeout_s: float = Field(default=60.0, gt=0)
    """Longest silence of the store within one attempt."""
    max_attempts: int = Field(default=4, gt=0, le=20)
    """At one request, with the first one; waits in between double, by chance, up to 20 s."""
    max_connections: int = Field(default=32, gt=0, le=1000)
    """Requests to the store at once, in this process."""
    part_bytes: int = Field(default=16 * 1024**2, ge=5 * 1024**2, le=1024**3)
    """Larger files are sent in parts of this size."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """`when_required` for a store that refuses the CRC checksums of today's AWS SDK."""
    encryption: Literal["AES256", "aws:kms"] | None = None
    """By the store, at rest; None: as the bucket is set up."""
    kms_key_id: str | None = None
    """With `aws:kms`; None: the account's own key for S3."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Blobs:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key: give both or neither")
        if self.kms_key_id is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key_id needs encryption 'aws:kms'")
        return self


class Redis(BaseModel):
    """How processes reach the broker that `redis_url` names; needs the extra `service`."""

    model_config = ConfigDict(frozen=True)

    sentinel_master: str | None = Field(default=None, min_length=1)
    """Name of the master that the sentinels of `redis_url` watch."""
    sentinel_password: SecretStr | None = None
    """Of the sentinels themselves; that of the master stands in `redis_url`."""
    tls_ca_file: Path | None = None
    """Certificates that sign the server's, for `rediss://`; None: those of this machine."""
    tls_verify: bool = True
    """Check the server's certificate and name."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """How long opening a connection may take; an upload waits no longer for its announcement."""
    events: bool = True
    """Workers tell what they do, for monitors such as Flower."""
    visibility_timeout_s: int = Field(default=600, ge=10)
    """A message whose worker vanished comes again after this long; doing it twice is harmless."""


class Ingestion(BaseModel):
    """How documents are worked on."""

    workers: int = Field(default=2, gt=0, le=64)
    """Documents in work at once in this process."""
    lease_s: float = Field(default=60.0, gt=0)
    """A worker that does not renew its claim for this long is taken for dead."""
    poll_s: float = Field(default=1.0, gt=0)
    """How often an idle worker looks for work that nobody announced."""
    max_attempts: int = Field(default=3, gt=0)
    """Tries at a document that fails for a transient reason; being told to come later is none, nor
    is a store that is away."""
    max_postponed_s: float = Field(default=86_400.0, gt=0, le=31_536_000)
    """A document that was told to come later (rate limits), or whose index, files or database are
    away, waits so long for progress at most."""
    max_crashes: int = Field(default=5, gt=0)
    """Times that the process may die while it reads a document before the document is given up."""
    retry_base_s: float = Field(default=5.0, ge=0)
    """Wait before the second attempt; doubles with each further one."""
    retry_max_s: float = Field(default=600.0, ge=0)
    """Longest wait between two attempts."""
    switch_patience_s: float = Field(default=3600.0, gt=0, le=31_536_000)
    """A switch to another embedding model or technique is given up when it made no progress for so
    long, because the model's server or the index is away; the dataset stays as it was."""
    batch_segments: int = Field(default=128, gt=0, le=4096)
    """Segments embedded, indexed and marked as done at a time."""
    chat_at_once: int = Field(default=4, gt=0, le=256)
    """Passages of one document that are with the chat model together."""
    keep_replaced_s: float = Field(default=5.0, ge=0)
    """Points of replaced text stay in the index so long, for queries that began before."""
    interactive_bytes: int = Field(default=262_144, ge=0)
    """Files up to this size wait in the queue `interactive`, larger ones in `bulk`."""
    sweep_s: float = Field(default=10.0, gt=0)
    """How often work is looked for whose announcement was lost (service size)."""
    clean_up_s: float = Field(default=3600.0, gt=0)
    """How often old records are removed."""
    keep_runs_days: float = Field(default=30.0, gt=0)
    """How long the records of ended pipeline runs and of imports of segments are kept."""
    keep_queries_days: float = Field(default=365.0, gt=0)
    """How long a query stays in the history."""
    keep_queries: int = Field(default=100_000, ge=0)
    """The newest queries of each dataset that stay in the history; 0 keeps none."""


class Metrics(BaseModel):
    """Who may read metrics, and where workers show theirs."""

    model_config = ConfigDict(frozen=True)

    token: SecretStr | None = None
    """Asked for as `Authorization: Bearer TOKEN`; None: `/metrics` of the API answers programs of
    this machine only."""
    worker_port: int | None = Field(default=None, gt=0, le=65535)
    """Port on which a `kb worker` shows its metrics; None: it does not."""
    worker_host: str = "127.0.0.1"
    """Address of that port; without a token let nobody reach it who should not."""


class Retrieval(BaseModel):
    """How queries are answered."""

    candidate_depth: int = Field(default=2000, gt=0, le=50_000)
    """At most so many candidates of each leg and dataset go into a hybrid query; it reads fewer,
    mostly 50, when those settle the answer."""
    rerank_depth: int = Field(default=50, gt=0, le=1000)
    """Best candidates of a query that a rerank model judges, over all its datasets together."""
    threads: int = Field(default=4, gt=0)
    """Legs searched in parallel in this process."""
    vector_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the dense leg of a hybrid query that gives no weights."""


class Tracing(BaseModel):
    """Spans of OpenTelemetry; needs the extra `otel`."""

    model_config = ConfigDict(frozen=True)

    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/]")
    """`http://HOST:4318`, a collector that takes OTLP over HTTP; None: no spans."""
    headers: SecretStr | None = None
    """`NAME=VALUE,NAME=VALUE`, sent to the collector, such as its key."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of traces that are kept; a caller that sends a `traceparent` decides for its own."""
    service_name: str = Field(default="kb", min_length=1)
    """What the traces of these processes are called."""
    timeout_s: float = Field(default=10.0, gt=0)
    """How long the collector may take; work does not wait for it."""


class Webhooks(BaseModel):
    """How messages about documents are delivered."""

    model_config = ConfigDict(frozen=True)

    timeout_s: float = Field(default=10.0, gt=0, le=60)
    """How long one attempt may take in all, from the connection to the answer's status."""
    max_attempts: int = Field(default=15, gt=0, le=100)
    """Attempts at one message; with the waits below the last one comes after about a day."""
    retry_base_s: float = Field(default=10.0, ge=0)
    """Wait before the second attempt; doubles with each further one, with some chance in it."""
    retry_max_s: float = Field(default=21_600.0, ge=0)
    """Longest wait; also when the receiver asks for a longer one."""
    disable_after_days: float = Field(default=5.0, gt=0)
    """A webhook that had no success for this long is switched off."""
    keep_deliveries_days: float = Field(default=30.0, gt=0)
    """How long the record of a message that was delivered or given up is kept."""
    allow_private: bool = False
    """Also send to addresses that are not public: this machine, private networks. Only where every
    holder of a key may reach whatever this machine reaches."""
    most: int = Field(default=50, gt=0)
    """Webhooks per workspace."""


class External(BaseModel):
    """How services are asked that hold the knowledge of external datasets."""

    model_config = ConfigDict(frozen=True)

    timeout_s: float = Field(default=10.0, gt=0, le=300)
    """How long a question may take in all: every attempt and the waits in between."""
    retries: int = Field(default=2, ge=0, le=20)
    """Attempts after the first one that gets no answer, status 429, or one of 500 and above."""
    retry_base_s: float = Field(default=0.2, ge=0)
    """Wait before the second attempt; doubles with each further one, with some chance in it."""
    redirects: int = Field(default=3, ge=0, le=20)
    """Followed at most; the key is not sent to another host."""
    answer_bytes: int = Field(default=5_000_000, gt=0)
    """Largest answer that is read."""
    threads: int = Field(default=16, gt=0)
    """Services asked at once by this process."""
    allow_private: bool = False
    """Also ask services at addresses that are not public: this machine, private networks. Only
    where every holder of a key may reach whatever this machine reaches."""
    most: int = Field(default=50, gt=0)
    """Services per workspace."""


class Limits(BaseModel):
    """Bounds on what callers may ask for."""

    file_bytes: int = Field(default=15_000_000, gt=0)
    """Of an uploaded file."""
    document_name_chars: int = Field(default=200, gt=0)
    """A longer name is cut; its ending stays."""
    text_chars: int = Field(default=20_000_000, gt=0)
    """Of a text that is sent as a text."""
    body_bytes: int = Field(default=100_000_000, gt=0)
    """Of a JSON body; a text of `text_chars` fits when it is sent as UTF-8."""
    query_chars: int = Field(default=250, gt=0)
    """Of a question, as the contract has it."""
    long_query_chars: int = Field(default=10_000, gt=0)
    """Of a question to `POST /retrieval`, to which applications send whole messages."""
    top_k: int = Field(default=100, gt=0)
    """Results of one query."""
    datasets_per_query: int = Field(default=100, gt=0)
    """Datasets that one call to `POST /v1/knowledge-retrieval` may name."""
    page_rows: int = Field(default=100, gt=0)
    """Rows on one page of a listing."""
    zip_documents: int = Field(default=100, gt=0)
    """Documents whose files one call may have in a zip."""
    file_link_s: int = Field(default=300, gt=0)
    """How long a link to a document's file may be opened."""
    pipeline_file_hours: float = Field(default=24, gt=0)
    """How long a file uploaded for a pipeline waits for a document to use it."""
    metadata_fields: int = Field(default=100, gt=0, le=1000)
    """Of one dataset, built-in ones not counted."""
    metadata_assignments: int = Field(default=50_000, gt=0)
    """Values that one bulk call sets, and documents that it names."""
    metadata_value_chars: int = Field(default=10_000, gt=0)
    """Of a text in a metadata field."""
    filter_conditions: int = Field(default=100, gt=0)
    """Comparisons in one filter."""
    filter_depth: int = Field(default=10, gt=0, le=100)
    """Groups and negations within each other in one filter."""
    filter_values: int = Field(default=10_000, gt=0)
    """Values in all lists of one filter together."""
    chunk_chars: int = Field(default=4000, ge=50)
    """Upper bound of `max_tokens` in a process rule."""
    qa_passages: int = Field(default=2000, gt=0)
    """Passages of one document that a chat model may be asked to write questions about."""
    segments: int = Field(default=0, ge=0)
    """Segments that one call may add; 0: any number."""
    segment_import_bytes: int = Field(default=15_000_000, gt=0)
    """Of a file whose rows become segments."""
    segment_import_rows: int = Field(default=10_000, gt=0)
    """Rows of such a file."""
    segment_import_at_once: int = Field(default=100, ge=0)
    """A file of so many rows is imported within its call; a larger one by a worker."""
    models: int = Field(default=100, gt=0)
    """Models of a workspace that were added through the API."""
    archive_bytes: int = Field(default=20_000_000_000, gt=0)
    """Of an archive that is imported; so much room is needed in the data directory meanwhile."""
    archive_unpacked_bytes: int = Field(default=100_000_000_000, gt=0)
    """Of all files of an archive together, when they are unpacked."""
    archive_part_bytes: int = Field(default=256_000_000, gt=0)
    """Of one file of an archive that is no source; two are held in memory at a time."""
    archive_files: int = Field(default=1_000_000, gt=0)
    """In an archive."""
    min_free_bytes: int = Field(default=256_000_000, ge=0)
    """Writes stop when the data directory's disk has less free than this."""
    min_free_share: float = Field(default=0.0, ge=0, lt=1)
    """Writes stop, too, when less than this share of the disk is free."""


class Settings(BaseSettings):
    """The process's settings; `KB_LIMITS__FILE_BYTES=50000000` sets `limits.file_bytes`."""

    model_config = SettingsConfigDict(
        env_prefix="KB_",
        env_nested_delimiter="__",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )
    data_dir: Path = Path("kb-data")
    """Database, index, files and exported models, as far as no server keeps them."""
    database_url: str | None = Field(default=None, repr=False)
    """`postgresql://USER:PASSWORD@HOST:PORT/NAME`; None: SQLite in the data directory."""
    database: Database = Database()
    redis_url: SecretStr | None = None
    """`redis://`, `rediss://` or `sentinel://HOST:26379;sentinel://HOST:26379`: documents are
    worked on by `kb worker`. None: by `kb serve` itself."""
    redis: Redis = Redis()
    api_key: SecretStr | None = None
    """Accepted as the workspace's key; None: the first start makes one and prints it once."""
    secret_key: SecretStr | None = None
    """Seals stored credentials: the base64 of 32 bytes (`openssl rand -base64 32`), the same in all
    processes. Several, separated by commas: the first one seals, all of them open. None: the first
    start makes one in the data directory, `secret.key`; with `redis_url` nothing can be sealed."""
    host: str = "127.0.0.1"
    """Address that the API listens on; 0.0.0.0 is every one of this machine."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port that the API listens on; 0 takes a free one."""
    public_url: str | None = Field(default=None, pattern=r"^https?://[^\s/]")
    """`https://HOST`, as clients reach the API, for links to files; None: as the request came."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe kind of line that is logged."""
    log_format: Literal["text", "json"] = "text"
    """How lines are logged: as text (logfmt in front of the message), or one JSON object each."""
    shutdown_s: float = Field(default=20.0, gt=0)
    """How long a stop waits for requests and batches in work."""
    qdrant: Qdrant = Qdrant()
    blobs: Blobs = Blobs()
    embedding: Embedding = Embedding()
    ingestion: Ingestion = Ingestion()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
    webhooks: Webhooks = Webhooks()
    external: External = External()
    retrieval: Retrieval = Retrieval()
    limits: Limits = Limits()

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL; SQLite under the data directory when none is set."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'kb.db'}"


class _Alone(Settings):
    """Settings of a file, or of nothing, whatever this process's environment says."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, dotenv_settings


def settings_of(path: Path) -> Settings:
    """The settings that a file holds, or those of an embedded installation in a directory.

    Raises:
        ValidationError: a value in the file cannot be used.
    """
    if path.is_dir():
        return _Alone(_env_file=None, data_dir=path)
    return _Alone(_env_file=path)
