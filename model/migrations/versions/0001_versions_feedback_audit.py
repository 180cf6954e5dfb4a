"""Versions with their stages, feedback, audit."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_STAGES = ("registered", "shadow", "canary", "champion", "retired")


def upgrade() -> None:
    """Create the first three tables."""
    op.create_table(
        "versions",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("manifest_sha256", sa.String(64), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stage_since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", "version"),
        sa.CheckConstraint(f"stage in {_STAGES!r}", name="stage_is_known"),
    )
    op.create_index(
        "one_champion",
        "versions",
        ["name"],
        unique=True,
        sqlite_where=sa.text("stage = 'champion'"),
        postgresql_where=sa.text("stage = 'champion'"),
    )
    op.create_table(
        "feedback",
        sa.Column("prediction_id", sa.String(36), nullable=False),
        sa.Column("client", sa.String(128), nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("model", sa.String(127), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("prediction_id", "client", name="one_per_client"),
    )
    op.create_index("feedback_received_at", "feedback", ["received_at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(127), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
