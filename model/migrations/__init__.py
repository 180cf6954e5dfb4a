"""Schema versions of the state database (Alembic)."""
