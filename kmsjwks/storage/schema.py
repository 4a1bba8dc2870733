"""The tables, as the migrations leave them, on SQLite and PostgreSQL alike.

The triggers that guard ``keys`` are in the migrations only.

Times are BIGINT seconds since the epoch. Algorithms are stored by ``Algorithm.id``.

Token rules are one JSON text column (``keysets.rules``): they are read and written as a whole and
never searched, half of them are lists that columns would turn into JSON or tables anyway, and a
new rule then needs no migration. Reading refuses a rule that this version does not know, so an
older replica stops rather than signs without it. The rotation schedule (``keysets.schedule``) and
the standby (``keysets.standby``; NULL: none) are kept in the same way.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData()

# What keysets made before there were schedules got; later defaults do not change them.
FIRST_SCHEDULE = (
    '{"period":null,"propagation":86400,"leeway":300,"destroy_after":null,"destroy_window":604800}'
)

keysets = Table(
    "keysets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("algorithm", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("rules", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("schedule", Text, nullable=False, server_default=FIRST_SCHEDULE),
    Column("standby", Text),
)

keys = Table(
    "keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("keyset", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("ref", Text, nullable=False),
    Column("spki", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("hold", Boolean, nullable=False, server_default=false()),
    Column("created_at", BigInteger, nullable=False),
    Column("published_at", BigInteger),
    Column("activate_at", BigInteger),
    Column("deactivated_at", BigInteger),
    Column("withdraw_at", BigInteger),
    Column("private_destroyed_at", BigInteger),
    Column("destroyed_at", BigInteger),
    Column("max_exp", BigInteger),
    Column("compromised_at", BigInteger),
    Column("seen_at", BigInteger),
    Column("exp_bound", BigInteger),
    Column("destroy_at", BigInteger),
    Column("version", BigInteger, nullable=False, server_default="0"),
    ForeignKeyConstraint(["keyset"], ["keysets.name"], name="fk_keys_keyset"),
    UniqueConstraint("backend", "ref", name="uq_keys_backend_ref"),
    CheckConstraint(
        "state IN ('pre-activation', 'active', 'deactivated', 'compromised', 'destroyed')",
        name="ck_keys_state",
    ),
)

_ACTIVE = text("state = 'active'")

Index(
    "uq_keys_one_active",
    keys.c.keyset,
    unique=True,
    sqlite_where=_ACTIVE,
    postgresql_where=_ACTIVE,
)

# Written before a backend is asked for a key, finished in the transaction that records the key;
# what stays open tells reconciliation which keys a crash may have orphaned. The keyset need not
# exist yet, hence no foreign key.
intents = Table(
    "intents",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("keyset", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
)

# What was done to keysets and keys, written in the transaction that did it. ``id`` is the order.
lifecycle_events = Table(
    "lifecycle_events",
    metadata,
    # SQLite counts INTEGER primary keys up by itself, and only those.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("keyset", Text, nullable=False),
    Column("kid", Text),
    Column("event", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

Index("ix_lifecycle_events_keyset", lifecycle_events.c.keyset, lifecycle_events.c.id)

# Acts that take a second person, and what became of them. Rows are kept: they say who was asked.
approvals = Table(
    "approvals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("act", Text, nullable=False),
    Column("keyset", Text, nullable=False),
    Column("kid", Text, nullable=False),
    Column("key_version", BigInteger, nullable=False),
    Column("proposed_by", Text, nullable=False),
    Column("proposed_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("approved_by", Text),
    Column("approved_at", BigInteger),
    ForeignKeyConstraint(["kid"], ["keys.kid"], name="fk_approvals_kid"),
    CheckConstraint("approved_by <> proposed_by", name="ck_approvals_two_persons"),
    CheckConstraint(
        "(state = 'approved') = (approved_by IS NOT NULL AND approved_at IS NOT NULL)",
        name="ck_approvals_approved",
    ),
)

_PROPOSED = text("state = 'proposed'")

Index(
    "uq_approvals_one_open",
    approvals.c.kid,
    approvals.c.act,
    unique=True,
    sqlite_where=_PROPOSED,
    postgresql_where=_PROPOSED,
)

# One row for each process that signs with a key. No foreign key: a database restored from a backup
# may not know the key that a process still signs with.
signing_leases = Table(
    "signing_leases",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("max_exp", BigInteger, nullable=False),
    Column("final", Boolean, nullable=False),
)

# One row, bumped by every transaction that changes keysets or keys.
store_revision = Table(
    "store_revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="ck_store_revision_one_row"),
)
