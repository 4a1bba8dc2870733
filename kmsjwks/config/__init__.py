"""Typed settings from one TOML file, the environment and the command line.

`load` reads them; every mistake is reported at once, in one ``ConfigurationError``.
"""

from kmsjwks.config.environment import RESERVED_VARIABLES
from kmsjwks.config.loader import load
from kmsjwks.config.settings import (
    AuditSettings,
    BackendSettings,
    ClientSettings,
    DatabaseSettings,
    JwksSettings,
    LogFormat,
    LoggingSettings,
    LogLevel,
    MetricsSettings,
    PublicationSettings,
    RotationSettings,
    ServerSettings,
    Settings,
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
    "ClientSettings",
    "DatabaseSettings",
    "JwksSettings",
    "LogFormat",
    "LogLevel",
    "LoggingSettings",
    "MetricsSettings",
    "PublicationSettings",
    "RotationSettings",
    "ServerSettings",
    "Settings",
    "SnapshotSettings",
    "StateSettings",
    "find_config_file",
    "load",
]
