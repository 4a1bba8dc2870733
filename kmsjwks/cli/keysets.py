"""`kmsjwks keysets`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from kmsjwks.bootstrap import Service
from kmsjwks.cli.acts import acting, report
from kmsjwks.cli.output import emit, shown_duration, shown_time
from kmsjwks.cli.ruleoptions import RULE_OPTIONS, rules_from
from kmsjwks.cli.session import Session, exits
from kmsjwks.cli.types import Duration
from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm, find_algorithm
from kmsjwks.domain.errors import InvalidRequest, KeysetNotFound
from kmsjwks.domain.explanation import explain
from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec

_NAMES = ", ".join(dict.fromkeys(one.jose for one in ALGORITHMS))


@click.group()
def keysets() -> None:
    """Named series of signing keys."""


def _rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.argument("name"),
            click.option(
                "--algorithm",
                "--alg",
                "alg",
                required=True,
                help=f"One of {_NAMES}; RSA sizes as RS256-3072, curves as Ed25519 or Ed448.",
            ),
            click.option("--key-size", type=int, help="RSA modulus in bits: 2048, 3072, 4096."),
            click.option("--curve", help="Curve of EdDSA: Ed25519 (default) or Ed448."),
            click.option("--backend", help="Default: the only one that is configured."),
            click.option("--issuer", help="The iss URL. Default: the service's base URL."),
            *RULE_OPTIONS,
            click.option(
                "--rotation-period",
                "period",
                type=Duration(),
                help="Time between activations. Default: keys rotate on demand only.",
            ),
            click.option(
                "--propagation",
                type=Duration(),
                default="24h",
                show_default=True,
                help="How long a key is published before it signs.",
            ),
            click.option(
                "--leeway",
                type=Duration(),
                default="5m",
                show_default=True,
                help="Clock difference that verifiers allow.",
            ),
            click.option(
                "--destroy-after",
                type=Duration(),
                help="Destroy keys this long after their withdrawal. Default: on demand only.",
            ),
            click.option(
                "--destroy-window",
                type=Duration(),
                default="7d",
                show_default=True,
                help="How long a destruction can be cancelled.",
            ),
            click.option("--dry-run", is_flag=True, help="Check and say; change nothing."),
        )
    ):
        command = option(command)
    return command


@keysets.command()
@_rule_options
@click.pass_context
@exits
def create(context: click.Context, name: str, **options: Any) -> None:
    """Create a keyset with one active key, generated in the backend."""
    session: Session = context.obj
    with session.service() as service:
        actor = acting(options)
        service.keysets.create(_wanted(service, name, options), actor)
        _emit_outcome(context, service, name, actor)


@keysets.command()
@_rule_options
@click.pass_context
@exits
def ensure(context: click.Context, name: str, **options: Any) -> None:
    """Create a keyset unless it exists; otherwise bring its token rules in line."""
    session: Session = context.obj
    with session.service() as service:
        actor = acting(options)
        service.keysets.ensure(_wanted(service, name, options), actor)
        _emit_outcome(context, service, name, actor)


@keysets.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Print the plan; change nothing.")
@click.pass_context
@exits
def rotate(context: click.Context, name: str, dry_run: bool) -> None:
    """Let the spare take over as soon as every verifier may be taken to know it."""
    session: Session = context.obj
    with session.service() as service:
        report(service.keys.rotate(name, acting({"dry_run": dry_run})), dry_run)
        if not dry_run:
            service.planner.tick()


def _emit_outcome(context: click.Context, service: Service, name: str, actor: Actor) -> None:
    if actor.dry_run:
        click.echo(f"Keyset {name}: nothing is wrong with it; nothing was changed.", err=True)
    else:
        _emit_one(context, service, name)


def _wanted(service: Service, name: str, options: dict[str, Any]) -> KeysetSpec:
    algorithm = find_algorithm(options["alg"], key_bits=options["key_size"], curve=options["curve"])
    rules = rules_from(options, options["issuer"] or _default_issuer(service, name, algorithm))
    schedule = RotationSchedule(
        period=options["period"],
        propagation=options["propagation"],
        leeway=options["leeway"],
        destroy_after=options["destroy_after"],
        destroy_window=options["destroy_window"],
    )
    return KeysetSpec(
        name, algorithm, options["backend"] or _only_backend(service), rules, schedule
    )


def _default_issuer(service: Service, name: str, algorithm: Algorithm) -> str:
    """The base URL, or for an algorithm that breaks clients a path of the keyset's own below it."""
    base = service.settings.server.base_url
    return f"{base}/{name}" if algorithm.breaks_clients else base


def _only_backend(service: Service) -> str:
    if len(service.backends) == 1:
        return next(iter(service.backends))
    raise InvalidRequest(f"Choose a backend with --backend: {', '.join(sorted(service.backends))}.")


@keysets.command("list")
@click.pass_context
@exits
def list_(context: click.Context) -> None:
    """All keysets."""
    session: Session = context.obj
    with session.service() as service:
        emit(context, [_summary(keyset) for keyset in service.store.keysets()])


@keysets.command()
@click.argument("name")
@click.pass_context
@exits
def show(context: click.Context, name: str) -> None:
    """One keyset with its keys."""
    session: Session = context.obj
    with session.service() as service:
        _emit_one(context, service, name)


def _emit_one(context: click.Context, service: Service, name: str) -> None:
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
            **_summary(keyset),
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


def _summary(keyset: Keyset) -> dict[str, Any]:
    return {
        "name": keyset.name,
        "algorithm": keyset.algorithm.id,
        "backend": keyset.backend,
        "issuer": keyset.rules.issuer,
        "audiences": list(keyset.rules.audiences),
        "max_lifetime": shown_duration(keyset.rules.max_lifetime),
    }


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
