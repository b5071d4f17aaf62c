"""Hand the chunks to the store, the end of every ingestion pipeline."""

from __future__ import annotations

from pipelines.errors import NodeError
from pipelines.node import Node, RunContext, node
from pipelines.types import Chunked, Embeddable, Indexed


@node("index")
class Index(Node[Chunked | Embeddable, Indexed]):
    """Store the chunks and make them searchable.

    Chunks that come from an embed node are found by meaning and by words, chunks that come
    straight from a chunker by words only. A repeated run stores nothing twice.
    """

    def run(self, value: Chunked | Embeddable, ctx: RunContext) -> Indexed:
        """Give the chunks to the run's sink.

        Raises:
            NodeError: code `no_chunks` when there is nothing to index, code `no_sink` when the run
                was started without a place to put chunks.
            TransientError: the store or the model did not answer; safe to retry.
        """
        if isinstance(value, Embeddable):
            chunked, embed = value.chunked, value.embed
        else:
            chunked, embed = value, None
        if not chunked.chunks:
            raise NodeError(
                "the document has no text to index after cleaning and splitting; "
                "check the source file and the cleaning options",
                code="no_chunks",
            )
        if ctx.sink is None:
            raise NodeError(
                "there is nowhere to store chunks in this run; give RunContext a sink",
                code="no_sink",
            )
        segments, points = ctx.sink.store(chunked, embed)
        return Indexed(points=points, segments=segments, warnings=chunked.warnings)
