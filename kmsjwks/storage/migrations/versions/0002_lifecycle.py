"""What rotation needs: more times of keys, versions, schedules, events, signing leases; and
triggers that guard keys.

The triggers hold for whoever writes to the database, by hand too. They refuse

* a state transition that NIST SP 800-57 does not have;
* while a key is on hold: any transition but that to ``compromised``, and any change of the dates
  that take a key away;
* changing what a key is, changing a destroyed key, and deleting a key.

What they say begins with ``kmsjwks refuses:``, by which the program knows them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TRANSITIONS = (
    ("pre-activation", "active"),
    ("pre-activation", "compromised"),
    ("pre-activation", "destroyed"),
    ("active", "deactivated"),
    ("active", "compromised"),
    ("deactivated", "compromised"),
    ("deactivated", "destroyed"),
    ("compromised", "destroyed"),
)
_SCHEDULE = (
    '{"period":null,"propagation":86400,"leeway":300,"destroy_after":null,"destroy_window":604800}'
)
_IDENTITY = ("kid", "keyset", "algorithm", "backend", "ref", "spki")
_ENDINGS = ("deactivated_at", "withdraw_at", "destroy_at", "private_destroyed_at", "destroyed_at")

_UPDATE_SQLITE = """
CREATE TRIGGER keys_guard_update BEFORE UPDATE ON keys
BEGIN
    SELECT CASE
        {branches}
    END;
END
"""
_DELETE_SQLITE = """
CREATE TRIGGER keys_guard_delete BEFORE DELETE ON keys
BEGIN
    SELECT RAISE(ABORT, '{message}');
END
"""
_FUNCTION_POSTGRESQL = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    {body}
END
$body$
"""
_TRIGGERS_POSTGRESQL = (
    "CREATE TRIGGER keys_guard_update BEFORE UPDATE ON keys "
    "FOR EACH ROW EXECUTE FUNCTION kmsjwks_guard_update()",
    "CREATE TRIGGER keys_guard_delete BEFORE DELETE ON keys "
    "FOR EACH ROW EXECUTE FUNCTION kmsjwks_guard_delete()",
    "CREATE TRIGGER keys_guard_truncate BEFORE TRUNCATE ON keys "
    "FOR EACH STATEMENT EXECUTE FUNCTION kmsjwks_guard_delete()",
)


def upgrade() -> None:
    _columns()
    _events()
    _leases()
    _triggers()


def _columns() -> None:
    op.add_column(
        "keysets", sa.Column("schedule", sa.Text, nullable=False, server_default=_SCHEDULE)
    )
    for name in ("compromised_at", "seen_at", "exp_bound", "destroy_at"):
        op.add_column("keys", sa.Column(name, sa.BigInteger))
    op.add_column("keys", sa.Column("version", sa.BigInteger, nullable=False, server_default="0"))


def _events() -> None:
    op.create_table(
        "lifecycle_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("keyset", sa.Text, nullable=False),
        sa.Column("kid", sa.Text),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_lifecycle_events_keyset", "lifecycle_events", ["keyset", "id"])


def _leases() -> None:
    op.create_table(
        "signing_leases",
        sa.Column("kid", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, primary_key=True),
        sa.Column("max_exp", sa.BigInteger, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
    )


def _triggers() -> None:
    forever = _refuses("keys are never deleted; a destroyed key stays as a record")
    if op.get_bind().dialect.name == "sqlite":
        branches = "\n        ".join(
            f"WHEN {condition} THEN RAISE(ABORT, '{message}')" for condition, message in _guards()
        )
        op.execute(_UPDATE_SQLITE.format(branches=branches))
        op.execute(_DELETE_SQLITE.format(message=forever))
        return
    checks = "\n    ".join(f"IF {one} THEN {_raise(message)} END IF;" for one, message in _guards())
    _function("kmsjwks_guard_update", f"{checks}\n    RETURN NEW;")
    _function("kmsjwks_guard_delete", _raise(forever))
    for trigger in _TRIGGERS_POSTGRESQL:
        op.execute(trigger)


def _function(name: str, body: str) -> None:
    op.execute(_FUNCTION_POSTGRESQL.format(name=name, body=body))


def _raise(message: str) -> str:
    # As a broken constraint, which is what SQLite makes of RAISE(ABORT).
    return f"RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation';"


def _guards() -> tuple[tuple[str, str], ...]:
    """When an update is refused, and why; the first that is true counts."""
    allowed = ", ".join(f"'{old} > {new}'" for old, new in TRANSITIONS)
    return (
        ("OLD.state = 'destroyed'", _refuses("it is destroyed, which is final")),
        (_differs(_IDENTITY), _refuses("what a key is never changes")),
        (
            "OLD.hold AND NEW.state <> OLD.state AND NEW.state <> 'compromised'",
            _refuses("it is on hold; release it first"),
        ),
        (
            f"OLD.hold AND NEW.hold AND NEW.state = OLD.state AND ({_differs(_ENDINGS)})",
            _refuses("it is on hold, and its end cannot be planned; release it first"),
        ),
        (
            f"NEW.state <> OLD.state AND OLD.state || ' > ' || NEW.state NOT IN ({allowed})",
            _refuses("this change of its state is not allowed"),
        ),
    )


def _differs(columns: tuple[str, ...]) -> str:
    operator = "IS NOT" if op.get_bind().dialect.name == "sqlite" else "IS DISTINCT FROM"
    return " OR ".join(f"NEW.{column} {operator} OLD.{column}" for column in columns)


def _refuses(why: str) -> str:
    return f"kmsjwks refuses: {why}"
