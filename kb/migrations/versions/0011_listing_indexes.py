"""indexes that listings of documents are read from

Revision: 0011, after 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_LISTING = (
    "dataset_id",
    "created_at",
    "position",
    "indexing_status",
    "enabled",
    "archived",
    "is_paused",
    "name",
)


def upgrade() -> None:
    """To this revision."""
    has_hits = sa.text("hit_count > 0")
    op.create_index("ix_documents_listing", "documents", _LISTING)
    op.create_index(
        "ix_segments_hits",
        "segments",
        ["document_id", "live", "hit_count"],
        sqlite_where=has_hits,
        postgresql_where=has_hits,
    )


def downgrade() -> None:
    """Back from this revision."""
    op.drop_index("ix_segments_hits", "segments")
    op.drop_index("ix_documents_listing", "documents")
