"""metadata fields

Revision: 0006, after 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "metadata_fields",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column(
            "type",
            sa.Enum("string", "number", "time", name="fieldtype", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("slot", sa.Integer(), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["datasets.id"],
            name=op.f("fk_metadata_fields_dataset_id_datasets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metadata_fields")),
        sa.UniqueConstraint("dataset_id", "name", name=op.f("uq_metadata_fields_dataset_id_name")),
    )
    op.add_column(
        "datasets",
        sa.Column(
            "built_in_field_enabled", sa.Boolean(), nullable=False, server_default=sa.false()
        ),
    )
    op.add_column(
        "datasets", sa.Column("metadata_revision", sa.Integer(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    """Back from this revision; fields are lost with their table, values stay unread."""
    op.execute(sa.text("DELETE FROM jobs WHERE kind = 'label_documents'"))
    with op.batch_alter_table("datasets") as table:
        table.drop_column("metadata_revision")
        table.drop_column("built_in_field_enabled")
    op.drop_table("metadata_fields")
