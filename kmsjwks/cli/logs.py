"""Structured logs on stderr."""

from __future__ import annotations

import logging.config

from kmsjwks.config import LoggingSettings


def configure_logging(settings: LoggingSettings) -> None:
    """One handler for the process: JSON lines, or text for a terminal."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "fmt": "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                },
                "text": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            },
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": settings.format}
            },
            "root": {"level": settings.level.upper(), "handlers": ["stderr"]},
            "loggers": {"alembic": {"level": "WARNING"}},
        }
    )
