"""Attach the embedding model to the chunks."""

from __future__ import annotations

from pipelines.errors import NodeError
from pipelines.node import Node, RunContext, node
from pipelines.types import Chunked, Embeddable


@node("embed")
class Embed(Node[Chunked, Embeddable]):
    """Have the chunks embedded by the run's embedding model.

    Nothing is embedded here: the index asks for the vectors of the chunks that it does not have
    yet, so a repeated run costs no model time.
    """

    def run(self, value: Chunked, ctx: RunContext) -> Embeddable:
        """Pair the chunks with the model.

        Raises:
            NodeError: code `no_embedder`; the run was started without an embedding model.
        """
        if ctx.embedder is None:
            raise NodeError(
                "there is no embedding model in this run; give RunContext an embedder, "
                "or leave the embed node out for full-text search only",
                code="no_embedder",
            )
        return Embeddable(value, ctx.embedder.embed_documents)
