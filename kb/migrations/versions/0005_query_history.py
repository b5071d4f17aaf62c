"""query history: settings, hits and latency of each query

Revision: 0005, after 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLE = "dataset_queries"


def upgrade() -> None:
    """To this revision; queries asked before have no settings and cannot be replayed."""
    op.add_column(_TABLE, sa.Column("call_id", sa.Uuid(), nullable=True))
    op.add_column(_TABLE, sa.Column("settings", sa.JSON(), nullable=True))
    op.add_column(_TABLE, sa.Column("hits", sa.JSON(), nullable=True))
    op.add_column(_TABLE, sa.Column("latency_ms", sa.Double(), nullable=True))
    op.create_index(f"ix_{_TABLE}_dataset_id_created_at", _TABLE, ["dataset_id", "created_at"])
    op.create_index(f"ix_{_TABLE}_created_at", _TABLE, ["created_at"])
    op.drop_index(f"ix_{_TABLE}_dataset_id", table_name=_TABLE)


def downgrade() -> None:
    """Back from this revision; settings, hits and latencies are lost."""
    op.create_index(f"ix_{_TABLE}_dataset_id", _TABLE, ["dataset_id"])
    op.drop_index(f"ix_{_TABLE}_created_at", table_name=_TABLE)
    op.drop_index(f"ix_{_TABLE}_dataset_id_created_at", table_name=_TABLE)
    with op.batch_alter_table(_TABLE) as batch_op:
        for column in ("latency_ms", "hits", "settings", "call_id"):
            batch_op.drop_column(column)
