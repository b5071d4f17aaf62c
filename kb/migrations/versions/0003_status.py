"""status: what the state of the work is read from

Revision: 0003, after 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("pipeline_runs", sa.Column("segments", sa.Integer(), nullable=True))
    op.create_index("ix_pipeline_runs_finished_at", "pipeline_runs", ["finished_at"])
    op.create_index("ix_jobs_state", "jobs", ["kind", "not_before", "attempts", "lease_expires_at"])


def downgrade() -> None:
    """Back from this revision."""
    op.drop_index("ix_jobs_state", table_name="jobs")
    op.drop_index("ix_pipeline_runs_finished_at", table_name="pipeline_runs")
    with op.batch_alter_table("pipeline_runs") as batch_op:
        batch_op.drop_column("segments")
