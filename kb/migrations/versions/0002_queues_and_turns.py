"""queues and turns

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNFINISHED = sa.text(
    "indexing_status IN ('waiting', 'parsing', 'cleaning', 'splitting', 'indexing')"
)


def upgrade() -> None:
    """To this revision."""
    queue = sa.Enum("interactive", "bulk", name="queue", native_enum=False, length=32)
    op.add_column(
        "documents", sa.Column("queue", queue, nullable=False, server_default="interactive")
    )
    op.create_index(
        "ix_documents_turn",
        "documents",
        ["queue", "dataset_id", "attempts", "queued_at", "position"],
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    )
    op.create_index(
        "ix_documents_dataset_id_processing_started_at",
        "documents",
        ["dataset_id", "processing_started_at"],
    )


def downgrade() -> None:
    """Back from this revision."""
    op.drop_index("ix_documents_dataset_id_processing_started_at", table_name="documents")
    op.drop_index("ix_documents_turn", table_name="documents")
    with op.batch_alter_table("documents") as batch_op:
        batch_op.drop_column("queue")
