"""edits of segments by hand

Revision: 0010, after 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_KINDS = ("edited", "disabled", "deleted", "added", "child_edited", "child_deleted", "child_added")
_STATES = ("active", "dormant", "conflict")


def upgrade() -> None:
    """To this revision."""
    op.add_column("segments", sa.Column("updated_by", sa.Uuid(), nullable=True))
    op.create_table(
        "segment_overlays",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(*_KINDS, name="overlaykind", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column(
            "state",
            sa.Enum(*_STATES, name="overlaystate", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("target_id", sa.Uuid(), nullable=False),
        sa.Column("segment_id", sa.Uuid(), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=True),
        sa.Column("before", sa.String(length=64), nullable=True),
        sa.Column("after", sa.String(length=64), nullable=True),
        sa.Column("original", sa.Text(), nullable=True),
        sa.Column("patch", sa.JSON(), nullable=True),
        sa.Column("matched_version", sa.Integer(), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["datasets.id"],
            name=op.f("fk_segment_overlays_dataset_id_datasets"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_segment_overlays_document_id_documents"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segment_overlays")),
        sa.UniqueConstraint(
            "document_id",
            "kind",
            "target_id",
            name=op.f("uq_segment_overlays_document_id_kind_target_id"),
        ),
    )
    op.create_index("ix_segment_overlays_dataset_id", "segment_overlays", ["dataset_id"])
    op.create_index("ix_segment_overlays_document_id", "segment_overlays", ["document_id"])


def downgrade() -> None:
    """Back from this revision; hand edits stay in the segments, until these are made anew."""
    op.execute(sa.text("DELETE FROM jobs WHERE kind = 'settle_points'"))
    op.drop_table("segment_overlays")
    with op.batch_alter_table("segments") as batch_op:
        batch_op.drop_column("updated_by")
