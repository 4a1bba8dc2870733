"""Run the revisions on the connection that ``kmsjwks.storage.migration`` hands over.

It is inside that module's transaction, so all revisions commit together or not at all.
"""

from __future__ import annotations

from alembic import context

from kmsjwks.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
