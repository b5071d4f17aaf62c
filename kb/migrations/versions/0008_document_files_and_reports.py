"""links to files, reports of ingestion, names of documents

Revision: 0008, after 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("workspaces", sa.Column("link_secret", sa.String(length=64), nullable=True))
    op.add_column("document_versions", sa.Column("report", sa.JSON(), nullable=True))
    op.create_index("ix_documents_dataset_id_name", "documents", ["dataset_id", "name"])


def downgrade() -> None:
    """Back from this revision; links that were given out and reports are lost."""
    op.drop_index("ix_documents_dataset_id_name", "documents")
    with op.batch_alter_table("document_versions") as batch_op:
        batch_op.drop_column("report")
    with op.batch_alter_table("workspaces") as batch_op:
        batch_op.drop_column("link_secret")
