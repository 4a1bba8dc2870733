"""Typed settings from one TOML file, the environment and the command line.

`load` reads them; every mistake is reported at once, in one ``ConfigurationError``.
"""

from kmsjwks.config.environment import RESERVED_VARIABLES
from kmsjwks.config.loader import load
from kmsjwks.config.settings import (
    AuditSettings,
    BackendSettings,
    BearerSettings,
    BearerToken,
    ClientSettings,
    DatabaseSettings,
    JwksSettings,
    LogFormat,
    LoggingSettings,
    LogLevel,
    MetricsSettings,
    MtlsSettings,
    OidcSettings,
    PublicationSettings,
    RotationSettings,
    ServerSettings,
    Settings,
    SigningSettings,
    SnapshotSettings,
    StateSettings,
)
from kmsjwks.config.tomlfile import CONFIG_VARIABLE, DEFAULT_PATHS, find_config_file

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_PATHS",
    "RESERVED_VARIABLES",
    "AuditSettings",
    "BackendSettings",
    "BearerSettings",
    "BearerToken",
    "ClientSettings",
    "DatabaseSettings",
    "JwksSettings",
    "LogFormat",
    "LogLevel",
    "LoggingSettings",
    "MetricsSettings",
    "MtlsSettings",
    "OidcSettings",
    "PublicationSettings",
    "RotationSettings",
    "ServerSettings",
    "Settings",
    "SigningSettings",
    "SnapshotSettings",
    "StateSettings",
    "find_config_file",
    "load",
]
