"""Durable state: keysets, keys and creation intents in SQL (SQLAlchemy Core, Alembic)."""
