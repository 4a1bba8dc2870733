"""The entry point: how the composition root makes this backend from configuration."""

from __future__ import annotations

from collections.abc import Mapping

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.backends.pkcs11.library import Libraries
from kmsjwks.backends.pkcs11.link import LinkHooks
from kmsjwks.backends.pkcs11.probe import probe_in_fresh_process
from kmsjwks.backends.pkcs11.settings import Pkcs11Settings, parse_settings
from kmsjwks.domain.ports import BackendContext, KeyBackend, ServerHooks


class Pkcs11Factory:
    """One per composition root: the modules of a process are shared between its backends."""

    def __init__(self) -> None:
        self._libraries = Libraries()

    def parse(
        self, name: str, options: Mapping[str, object], context: BackendContext
    ) -> Pkcs11Settings:
        """
        Raises:
            ConfigurationError: every mistake in the options at once.
        """
        return parse_settings(
            name, options, base=context.base, state=context.state, environ=context.environ
        )

    def open(self, settings: Pkcs11Settings, hooks: ServerHooks | None) -> KeyBackend:
        """Loads nothing yet."""
        if hooks is None:
            return Pkcs11Backend(settings, self._libraries)
        return Pkcs11Backend(
            settings,
            self._libraries,
            LinkHooks(
                on_stall=hooks.on_stall,
                is_replaceable=lambda: probe_in_fresh_process(settings),
                replace_process=hooks.replace_process,
            ),
        )
