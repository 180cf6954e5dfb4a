"""Alembic's entrance: run the migrations on the connection that `model.state` hands over."""

from alembic import context

from model.state import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
