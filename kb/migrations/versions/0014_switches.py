"""switches of datasets to another model or technique

Revision: 0014, after 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_STATES = ("running", "completed", "failed", "cancelled")


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "dataset_switches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(*_STATES, name="switchstatus", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("technique", sa.String(length=32), nullable=False),
        sa.Column("embedding_model", sa.String(length=255), nullable=True),
        sa.Column("embedding_model_provider", sa.String(length=255), nullable=True),
        sa.Column("space_name", sa.String(length=100), nullable=False),
        sa.Column("space_dim", sa.Integer(), nullable=True),
        sa.Column("from_technique", sa.String(length=32), nullable=False),
        sa.Column("from_model", sa.String(length=255), nullable=True),
        sa.Column("from_provider", sa.String(length=255), nullable=True),
        sa.Column("from_space_name", sa.String(length=100), nullable=False),
        sa.Column("from_space_dim", sa.Integer(), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cursor", sa.Uuid(), nullable=True),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("cleaned", sa.Boolean(), nullable=False),
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("done", sa.Integer(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["datasets.id"],
            name=op.f("fk_dataset_switches_dataset_id_datasets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_switches")),
    )
    op.create_index("ix_dataset_switches_dataset_id", "dataset_switches", ["dataset_id"])
    op.create_table(
        "switch_points",
        sa.Column("switch_id", sa.Uuid(), nullable=False),
        sa.Column("point_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text_hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["switch_id"],
            ["dataset_switches.id"],
            name=op.f("fk_switch_points_switch_id_dataset_switches"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("switch_id", "point_id", name=op.f("pk_switch_points")),
    )


def downgrade() -> None:
    """Back from this revision; a running switch ends, its dataset stays as it is."""
    op.execute(sa.text("DELETE FROM jobs WHERE kind IN ('switch_dataset', 'settle_dataset')"))
    op.drop_table("switch_points")
    op.drop_table("dataset_switches")
