"""Keysets, keys, creation intents and the revision counter."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _keysets()
    _keys()
    _intents()
    _revision()


def _keysets() -> None:
    op.create_table(
        "keysets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("algorithm", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("rules", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("kid", sa.Text, primary_key=True),
        sa.Column("keyset", sa.Text, nullable=False),
        sa.Column("algorithm", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("ref", sa.Text, nullable=False),
        sa.Column("spki", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("hold", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("published_at", sa.BigInteger),
        sa.Column("activate_at", sa.BigInteger),
        sa.Column("deactivated_at", sa.BigInteger),
        sa.Column("withdraw_at", sa.BigInteger),
        sa.Column("private_destroyed_at", sa.BigInteger),
        sa.Column("destroyed_at", sa.BigInteger),
        sa.Column("max_exp", sa.BigInteger),
        sa.ForeignKeyConstraint(["keyset"], ["keysets.name"], name="fk_keys_keyset"),
        sa.UniqueConstraint("backend", "ref", name="uq_keys_backend_ref"),
        sa.CheckConstraint(
            "state IN ('pre-activation', 'active', 'deactivated', 'compromised', 'destroyed')",
            name="ck_keys_state",
        ),
    )
    op.create_index(
        "uq_keys_one_active",
        "keys",
        ["keyset"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )


def _intents() -> None:
    op.create_table(
        "intents",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("keyset", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("algorithm", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
    )


def _revision() -> None:
    table = op.create_table(
        "store_revision",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_store_revision_one_row"),
    )
    op.bulk_insert(table, [{"id": 1, "value": 0}])
