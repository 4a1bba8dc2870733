"""`kmsjwks keysets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kmsjwks.bootstrap import Service
from kmsjwks.cli.acts import acting, report, tick
from kmsjwks.cli.output import emit
from kmsjwks.cli.ruleoptions import RULE_OPTIONS, rules_from
from kmsjwks.cli.session import Session, exits
from kmsjwks.cli.types import NEVER, Delay, Duration
from kmsjwks.cli.views import emit_keyset, summary
from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm, find_algorithm
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.keys import Standby
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec

_NAMES = ", ".join(dict.fromkeys(one.jose for one in ALGORITHMS))


@click.group()
def keysets() -> None:
    """Named series of signing keys."""


def delay_options() -> tuple[Callable[[Any], Any], ...]:
    return (
        click.option(
            "--failover-after",
            type=Delay(),
            help="How long the backend that signs must have been down before the other takes "
            "over; 'never': on command only. Default: 60s.",
        ),
        click.option(
            "--failback-after",
            type=Delay(),
            help="How long the primary must have been up again before it takes over; 'never': on "
            "command only. Default: 1h.",
        ),
    )


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
            click.option("--standby", help="A backend whose published spare takes over."),
            *delay_options(),
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
        _make_spares(service, options, actor)
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
        _make_spares(service, options, actor)
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
            tick(service)


def _make_spares(service: Service, options: dict[str, Any], actor: Actor) -> None:
    """A standby helps only once its spare is known for long: not a moment is to be lost."""
    if options["standby"] is not None and not actor.dry_run:
        tick(service)


def _emit_outcome(context: click.Context, service: Service, name: str, actor: Actor) -> None:
    if actor.dry_run:
        click.echo(f"Keyset {name}: nothing is wrong with it; nothing was changed.", err=True)
    else:
        emit_keyset(context, service, name)


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
    backend = options["backend"] or _only_backend(service)
    return KeysetSpec(name, algorithm, backend, rules, schedule, standby_of(options))


def standby_of(options: dict[str, Any]) -> Standby | None:
    """
    Raises:
        click.UsageError: delays of no standby.
    """
    backend = options["standby"]
    given = {
        name: None if options[name] == NEVER else options[name]
        for name in ("failover_after", "failback_after")
        if options[name] is not None
    }
    if backend is None and given:
        raise click.UsageError("--failover-after and --failback-after need a standby backend.")
    return None if backend is None else Standby(backend, **given)


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
        keys = list(service.store.keys())
        emit(
            context,
            [
                summary(keyset, [key for key in keys if key.keyset == keyset.name])
                for keyset in service.store.keysets()
            ],
        )


@keysets.command()
@click.argument("name")
@click.pass_context
@exits
def show(context: click.Context, name: str) -> None:
    """One keyset with its keys."""
    session: Session = context.obj
    with session.service() as service:
        emit_keyset(context, service, name)
