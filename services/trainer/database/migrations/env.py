"""What Alembic runs: the migrations, on the connection that `tables.py` hands over."""

from __future__ import annotations

from alembic import context

from services.trainer.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    transactional_ddl=True,  # in the transaction of `tables.migrate`, SQLite too
)
with context.begin_transaction():
    context.run_migrations()
