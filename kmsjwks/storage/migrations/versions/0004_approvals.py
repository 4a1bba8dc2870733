"""Proposals that wait for a second person, and the correction of a wrong declaration of compromise.

The trigger of 0002 refused everything that NIST SP 800-57 does not have. It now lets a compromised
key become deactivated where the same change takes back ``compromised_at`` and has both dates that
protect its tokens, ``deactivated_at`` and ``withdraw_at``. The rest of it is as it was.

``destroy_at`` of a compromised key is from now on the time until which its private half is kept;
what earlier versions left there meant nothing, and goes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TRANSITIONS = (
    ("pre-activation", "active"),
    ("pre-activation", "compromised"),
    ("pre-activation", "destroyed"),
    ("active", "deactivated"),
    ("active", "compromised"),
    ("deactivated", "compromised"),
    ("deactivated", "destroyed"),
    ("compromised", "destroyed"),
)
_CORRECTION = (
    "OLD.state = 'compromised' AND NEW.state = 'deactivated' AND NEW.compromised_at IS NULL "
    "AND NEW.deactivated_at IS NOT NULL AND NEW.withdraw_at IS NOT NULL"
)
_IDENTITY = ("kid", "keyset", "algorithm", "backend", "ref", "spki")
_ENDINGS = ("deactivated_at", "withdraw_at", "destroy_at", "private_destroyed_at", "destroyed_at")

_SQLITE = """
CREATE TRIGGER keys_guard_update BEFORE UPDATE ON keys
BEGIN
    SELECT CASE
        {branches}
    END;
END
"""
_POSTGRESQL = """
CREATE OR REPLACE FUNCTION kmsjwks_guard_update() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    {checks}
    RETURN NEW;
END
$body$
"""


def upgrade() -> None:
    # Writers take this row first, so nobody is in the middle of a change.
    op.execute("UPDATE store_revision SET value = value")
    op.execute(
        "UPDATE keys SET destroy_at = NULL, version = version + 1 "
        "WHERE state = 'compromised' AND NOT hold AND destroy_at IS NOT NULL"
    )
    _approvals()
    _trigger()


def _approvals() -> None:
    op.create_table(
        "approvals",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("act", sa.Text, nullable=False),
        sa.Column("keyset", sa.Text, nullable=False),
        sa.Column("kid", sa.Text, nullable=False),
        sa.Column("key_version", sa.BigInteger, nullable=False),
        sa.Column("proposed_by", sa.Text, nullable=False),
        sa.Column("proposed_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("approved_by", sa.Text),
        sa.Column("approved_at", sa.BigInteger),
        sa.ForeignKeyConstraint(["kid"], ["keys.kid"], name="fk_approvals_kid"),
        sa.CheckConstraint("approved_by <> proposed_by", name="ck_approvals_two_persons"),
        sa.CheckConstraint(
            "(state = 'approved') = (approved_by IS NOT NULL AND approved_at IS NOT NULL)",
            name="ck_approvals_approved",
        ),
    )
    op.create_index(
        "uq_approvals_one_open",
        "approvals",
        ["kid", "act"],
        unique=True,
        sqlite_where=sa.text("state = 'proposed'"),
        postgresql_where=sa.text("state = 'proposed'"),
    )


def _trigger() -> None:
    if op.get_bind().dialect.name == "sqlite":
        branches = "\n        ".join(
            f"WHEN {condition} THEN RAISE(ABORT, '{_refuses(why)}')" for condition, why in _guards()
        )
        op.execute("DROP TRIGGER keys_guard_update")
        op.execute(_SQLITE.format(branches=branches))
        return
    checks = "\n    ".join(
        # As a broken constraint, which is what SQLite makes of RAISE(ABORT).
        f"IF {condition} THEN RAISE EXCEPTION '{_refuses(why)}' "
        "USING ERRCODE = 'integrity_constraint_violation'; END IF;"
        for condition, why in _guards()
    )
    op.execute(_POSTGRESQL.format(checks=checks))


def _guards() -> tuple[tuple[str, str], ...]:
    """When an update is refused, and why; the first that is true counts."""
    allowed = ", ".join(f"'{old} > {new}'" for old, new in _TRANSITIONS)
    return (
        ("OLD.state = 'destroyed'", "it is destroyed, which is final"),
        (_differs(_IDENTITY), "what a key is never changes"),
        (
            "OLD.hold AND NEW.state <> OLD.state AND NEW.state <> 'compromised'",
            "it is on hold; release it first",
        ),
        (
            f"OLD.hold AND NEW.hold AND NEW.state = OLD.state AND ({_differs(_ENDINGS)})",
            "it is on hold, and its end cannot be planned; release it first",
        ),
        (
            f"NEW.state <> OLD.state AND OLD.state || ' > ' || NEW.state NOT IN ({allowed}) "
            f"AND NOT ({_CORRECTION})",
            "this change of its state is not allowed",
        ),
    )


def _differs(columns: tuple[str, ...]) -> str:
    operator = "IS NOT" if op.get_bind().dialect.name == "sqlite" else "IS DISTINCT FROM"
    return " OR ".join(f"NEW.{column} {operator} OLD.{column}" for column in columns)


def _refuses(why: str) -> str:
    return f"kmsjwks refuses: {why}"
