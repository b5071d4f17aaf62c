"""answers of chat models for documents

Revision: 0013, after 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "chat_cache",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("question_hash", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("model", "question_hash", name=op.f("pk_chat_cache")),
    )


def downgrade() -> None:
    """Back from this revision; what was written is asked for again when it is needed."""
    op.drop_table("chat_cache")
