"""Keysets and keys as the command line shows them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from kmsjwks.bootstrap import Service
from kmsjwks.cli.output import emit, shown_duration, shown_time
from kmsjwks.domain.errors import KeysetNotFound
from kmsjwks.domain.explanation import explain
from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.rotation import active_key


def emit_keyset(context: click.Context, service: Service, name: str) -> None:
    """
    Raises:
        KeysetNotFound
    """
    keyset = next((one for one in service.store.keysets() if one.name == name), None)
    if keyset is None:
        raise KeysetNotFound(f"There is no keyset {name}.")
    rules, schedule = keyset.rules, keyset.schedule
    keys = service.store.keys(name)
    dates = explain(
        keyset,
        keys,
        service.timing,
        int(time.time()),
        gated=service.settings.rotation.check_public_jwks,
    )
    emit(
        context,
        {
            **summary(keyset, keys),
            **_standby(keyset),
            "jwks_uri": f"{rules.issuer}/.well-known/jwks.json",
            "typ": rules.typ,
            "default_lifetime": shown_duration(rules.default_lifetime),
            "required_claims": list(rules.required),
            "forbidden_claims": list(rules.forbidden),
            "fixed_claims": dict(rules.fixed),
            "allowed_claims": list(rules.allowed),
            "nbf": rules.nbf,
            "jti": rules.jti,
            "profile": rules.profile,
            "rotation_period": shown_duration(schedule.period) if schedule.period else "on demand",
            "propagation": shown_duration(schedule.propagation),
            "leeway": shown_duration(schedule.leeway),
            "created_at": shown_time(keyset.created_at),
            "unsafe": service.timing.development,
            "keys": [summary_of_key(key) for key in keys],
            "dates": [
                {"kid": one.kid, "what": date.what, "at": shown_time(date.at), "why": date.why}
                for one in dates
                for date in one.dates
            ],
        },
    )
    if service.timing.development:
        click.echo("warning: rotation.development is set; these times are UNSAFE.", err=True)


def summary(keyset: Keyset, keys: Sequence[Key]) -> dict[str, Any]:
    """``keys`` are those of the keyset."""
    active = active_key(keys)
    return {
        "name": keyset.name,
        "algorithm": keyset.algorithm.id,
        "backend": keyset.backend,
        "standby": keyset.standby.backend if keyset.standby else None,
        "signs_in": active.backend if active else None,
        "issuer": keyset.rules.issuer,
        "audiences": list(keyset.rules.audiences),
        "max_lifetime": shown_duration(keyset.rules.max_lifetime),
    }


def _standby(keyset: Keyset) -> dict[str, str]:
    standby = keyset.standby
    if standby is None:
        return {}
    return {
        "failover_after": _delay(standby.failover_after),
        "failback_after": _delay(standby.failback_after),
    }


def _delay(seconds: int | None) -> str:
    return "on command" if seconds is None else shown_duration(seconds)


def summary_of_key(key: Key) -> dict[str, Any]:
    return {
        "kid": key.kid,
        "state": key.state.value,
        "algorithm": key.algorithm.id,
        "backend": key.backend,
        "ref": key.ref,
        "hold": key.hold,
        "published_at": shown_time(key.times.published_at),
        "activate_at": shown_time(key.times.activate_at),
        "withdraw_at": shown_time(key.times.withdraw_at),
    }
