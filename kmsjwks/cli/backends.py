"""`kmsjwks backends`: asks each whether it can serve, and says what depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from kmsjwks.bootstrap import Service
from kmsjwks.cli.output import emit
from kmsjwks.cli.session import Exit, Session, exit_code, exits
from kmsjwks.domain.errors import BackendError, BackendThrottled
from kmsjwks.domain.keys import Key, KeyState
from kmsjwks.domain.ports import KeyBackend


@click.command()
@click.pass_context
@exits
def backends(context: click.Context) -> None:
    """Ask every backend now whether it can serve. Exit code 3 if one is unreachable.

    Since when one is down only a serving process knows: GET /v1/backends, and its log.
    """
    session: Session = context.obj
    with session.service() as service:
        names = sorted(service.backends)
        keys = list(service.store.keys())
        with ThreadPoolExecutor(len(names)) as pool:  # each answers within its own deadline
            found = list(pool.map(_trouble, [service.backends[name] for name in names]))
        troubles = dict(zip(names, found, strict=True))
        emit(context, [_row(service, keys, name, error) for name, error in troubles.items()])
    context.exit(max((exit_code(error) for error in found if error), default=Exit.OK, key=_urgency))


def _trouble(backend: KeyBackend) -> BackendError | None:
    try:
        backend.check()
    except BackendThrottled:  # it answered
        return None
    except BackendError as error:
        return error
    return None


def _urgency(code: Exit) -> int:
    """Whether one is unreachable is what scripts ask."""
    return 2 if code is Exit.BACKEND_UNREACHABLE else 1


def _row(
    service: Service, keys: Sequence[Key], name: str, error: BackendError | None
) -> dict[str, Any]:
    here = [key for key in keys if key.backend == name and key.state is not KeyState.DESTROYED]
    active = sorted({key.keyset for key in here if key.state is KeyState.ACTIVE})
    return {
        "name": name,
        "type": service.settings.backends[name].type,
        "state": "up" if error is None else "down",
        "keysets": sorted({key.keyset for key in here}),
        "signing": active,
        "cannot_sign": active if error is not None else [],
        "reason": "" if error is None else str(error),
    }
