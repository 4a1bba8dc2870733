"""Standby backends of keysets, and a trigger that guards a destruction with a waiting window of
the backend's own (AWS KMS: 7 to 30 days).

While that window lasts a key keeps its state and has a ``private_destroyed_at`` in the future,
which cancelling clears again. Beside what the triggers of 0002 refuse, this one refuses

* ``destroyed`` with a ``destroyed_at`` before ``private_destroyed_at``;
* an active key with a ``private_destroyed_at``.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# Triggers fire in an order that SQLite does not define: what those of 0002 refuse is left to them.
_TOO_EARLY = (
    "NEW.state = 'destroyed' AND OLD.state <> 'destroyed' AND NOT OLD.hold "
    "AND NEW.private_destroyed_at > NEW.destroyed_at",
    "it is not destroyed in its backend yet; wait until private_destroyed_at, or cancel the "
    "destruction",
)
_ACTIVE = (
    "NEW.state = 'active' AND NEW.private_destroyed_at IS NOT NULL AND NOT (OLD.hold AND NEW.hold)",
    "a key whose destruction its backend has begun cannot be active",
)

_SQLITE = """
CREATE TRIGGER keys_guard_destruction BEFORE UPDATE ON keys
BEGIN
    SELECT CASE
        {branches}
    END;
END
"""
_FUNCTION_POSTGRESQL = """
CREATE FUNCTION kmsjwks_guard_destruction() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    {checks}
    RETURN NEW;
END
$body$
"""
_TRIGGER_POSTGRESQL = (
    "CREATE TRIGGER keys_guard_destruction BEFORE UPDATE ON keys "
    "FOR EACH ROW EXECUTE FUNCTION kmsjwks_guard_destruction()"
)


def upgrade() -> None:
    # Writers take this row first. Without it, one that holds ``keys`` and wants ``keysets`` for
    # its foreign key would deadlock with the locks that come next.
    op.execute("UPDATE store_revision SET value = value")
    op.add_column("keysets", sa.Column("standby", sa.Text))
    _trigger()


def _trigger() -> None:
    guards = (_TOO_EARLY, _ACTIVE)
    if op.get_bind().dialect.name == "sqlite":
        branches = "\n        ".join(
            f"WHEN {condition} THEN RAISE(ABORT, '{_refuses(why)}')" for condition, why in guards
        )
        op.execute(_SQLITE.format(branches=branches))
        return
    checks = "\n    ".join(
        # As a broken constraint, which is what SQLite makes of RAISE(ABORT).
        f"IF {condition} THEN RAISE EXCEPTION '{_refuses(why)}' "
        "USING ERRCODE = 'integrity_constraint_violation'; END IF;"
        for condition, why in guards
    )
    op.execute(_FUNCTION_POSTGRESQL.format(checks=checks))
    op.execute(_TRIGGER_POSTGRESQL)


def _refuses(why: str) -> str:
    return f"kmsjwks refuses: {why}"
