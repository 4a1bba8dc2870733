"""The entry point: how the composition root makes this backend from configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

from kmsjwks.backends.awskms.settings import KmsSettings, parse_settings
from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.domain.ports import BackendContext, KeyBackend, ServerHooks


class KmsFactory:
    """Needs boto3, which the extra ``aws`` installs."""

    def parse(
        self, name: str, options: Mapping[str, object], context: BackendContext
    ) -> KmsSettings:
        """
        Raises:
            ConfigurationError: every mistake in the options at once; or boto3 is not installed.
        """
        if find_spec("boto3") is None:
            raise ConfigurationError(
                [f"backends.{name}.type: awskms needs boto3; install the extra kmsjwks[aws]"]
            )
        return parse_settings(name, options, context)

    def open(self, settings: KmsSettings, hooks: ServerHooks | None) -> KeyBackend:
        """Asks nothing of the network yet. Every call ends by itself, and workers share the
        limit of the machine."""
        if hooks is not None:
            share = settings.requests_per_second / hooks.workers
            settings = replace(settings, requests_per_second=share)
        # Here, because it imports boto3, and ``parse`` must be able to say that it is missing.
        from kmsjwks.backends.awskms.backend import KmsBackend  # noqa: PLC0415

        return KmsBackend(settings)
