"""A service wired by the composition root over a `FakeBackend`: where a device adds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kmsjwks import bootstrap
from kmsjwks.domain.ports import BackendContext, ServerHooks
from tests.fakes import FakeBackend


class LastingBackend(FakeBackend):
    """Outlives the services that use it, as a device does."""

    def close(self) -> None:
        pass


def install_backend_type(patch: pytest.MonkeyPatch, backend: FakeBackend) -> None:
    """Make ``backend`` what the configuration's type "fake" opens."""
    install_backends(patch, {"fake": backend})


def install_backends(patch: pytest.MonkeyPatch, backends: Mapping[str, FakeBackend]) -> None:
    """The same for several, by the names that the configuration gives them."""

    class Factory:
        def parse(self, name: str, options: Mapping[str, object], context: BackendContext) -> Any:
            return name if name in backends else next(iter(backends))

        def open(self, settings: Any, hooks: ServerHooks | None) -> FakeBackend:
            return backends[settings]

    point = SimpleNamespace(name="fake", load=lambda: Factory)
    patch.setattr(bootstrap, "entry_points", lambda group: [point])


def write_config(directory: Path, more: str = "") -> Path:
    path = directory / "kmsjwks.toml"
    path.write_text(f'[backends.fake]\ntype = "fake"\n{more}')
    return path
