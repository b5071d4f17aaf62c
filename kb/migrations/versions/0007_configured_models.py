"""configured models; signing keys of webhooks have room to be sealed

Revision: 0007, after 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TYPES = ("text-embedding", "rerank", "llm")
_KINDS = ("local", "openai", "tei", "cohere", "jina", "vllm")


def upgrade() -> None:
    """To this revision; what is stored in clear is sealed by the next start."""
    op.create_table(
        "configured_models",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column(
            "type", sa.Enum(*_TYPES, name="modeltype", native_enum=False, length=32), nullable=False
        ),
        sa.Column("provider", sa.String(length=200), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column(
            "kind", sa.Enum(*_KINDS, name="modelkind", native_enum=False, length=32), nullable=False
        ),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("api_key", sa.Text(), nullable=True),
        sa.Column("api_key_hint", sa.String(length=16), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("last_test", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspaces.id"],
            name=op.f("fk_configured_models_workspace_id_workspaces"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_configured_models")),
        sa.UniqueConstraint(
            "workspace_id",
            "type",
            "provider",
            "model",
            name=op.f("uq_configured_models_workspace_id_type_provider_model"),
        ),
    )
    op.create_index("ix_configured_models_workspace_id", "configured_models", ["workspace_id"])
    with op.batch_alter_table("webhooks") as table:
        table.alter_column(
            "secret", existing_type=sa.String(length=128), type_=sa.Text(), existing_nullable=False
        )


def downgrade() -> None:
    """Back from this revision; the models are forgotten.

    No older version reads sealed signing keys: `kb.sealing.open_all` opens them first.
    """
    sealed = sa.text("SELECT count(*) FROM webhooks WHERE secret LIKE 'sealed:%'")
    if count := op.get_bind().scalar(sealed):
        raise RuntimeError(
            f"{count} signing keys of webhooks are sealed, which older versions cannot read; open "
            "them first: kb.sealing.open_all(sessions, keyring)"
        )
    op.drop_table("configured_models")
    with op.batch_alter_table("webhooks") as table:
        table.alter_column(
            "secret", existing_type=sa.Text(), type_=sa.String(length=128), existing_nullable=False
        )
