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

    class Factory:
        def parse(self, name: str, options: Mapping[str, object], context: BackendContext) -> Any:
            return name

        def open(self, settings: Any, hooks: ServerHooks | None) -> FakeBackend:
            return backend

    point = SimpleNamespace(name="fake", load=lambda: Factory)
    patch.setattr(bootstrap, "entry_points", lambda group: [point])


def write_config(directory: Path, more: str = "") -> Path:
    path = directory / "kmsjwks.toml"
    path.write_text(f'[backends.fake]\ntype = "fake"\n{more}')
    return path
