"""external knowledge: services that hold it, and datasets that show it

Revision: 0012, after 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_APIS = "external_knowledge_apis"
_BINDINGS = "external_knowledge_bindings"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        _APIS,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("api_key", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspaces.id"],
            name=op.f(f"fk_{_APIS}_workspace_id_workspaces"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{_APIS}")),
    )
    op.create_index(f"ix_{_APIS}_workspace_id", _APIS, ["workspace_id"])
    op.create_table(
        _BINDINGS,
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("api_id", sa.Uuid(), nullable=False),
        sa.Column("knowledge_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["api_id"], [f"{_APIS}.id"], name=op.f(f"fk_{_BINDINGS}_api_id_{_APIS}")
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["datasets.id"],
            name=op.f(f"fk_{_BINDINGS}_dataset_id_datasets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", name=op.f(f"pk_{_BINDINGS}")),
    )
    op.create_index(f"ix_{_BINDINGS}_api_id", _BINDINGS, ["api_id"])


def downgrade() -> None:
    """Back from this revision; datasets of other services lose their connection."""
    op.drop_table(_BINDINGS)
    op.drop_table(_APIS)
