"""Alembic's environment and revisions. Run through ``kmsjwks.storage.migration.migrate``."""
