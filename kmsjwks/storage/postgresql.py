"""PostgreSQL engines, through psycopg 3.

No connection is kept between two transactions (``NullPool``): an engine is safe to fork, and
there is no dead connection to find out about when the server restarts. Measured on two cores, a
transaction takes 7 ms through a socket and 12 ms through loopback with SCRAM (0.9 and 3.3 ms of
them our CPU time), against 0.6 ms with a pool that pings. No signature waits for one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine

from kmsjwks.domain.errors import ConfigurationError

CONNECT_TIMEOUT = 3  # seconds, for each address of the host
STATEMENT_TIMEOUT = 5000  # milliseconds
ABANDONED = 10_000  # milliseconds after which a transaction that does nothing loses its locks

FORM = "postgresql://user:password@host:5432/database?sslmode=verify-full"

# libpq's names; what the URL says goes first.
_CLIENT_DEFAULTS = {
    "connect_timeout": CONNECT_TIMEOUT,
    "client_encoding": "utf8",
    "fallback_application_name": "kmsjwks",
    # A server that vanished without a word is noticed within about ten seconds.
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# The server's view of the same: a replica that vanished gives up its locks.
_SERVER_SETTINGS = {
    "statement_timeout": STATEMENT_TIMEOUT,
    "idle_in_transaction_session_timeout": ABANDONED,
    "tcp_keepalives_idle": 4,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
}


def postgresql_engine(url: URL, lock_timeout: float) -> Engine:
    """Connects when it is used. ``lock_timeout`` is in seconds.

    The engine's own URL names the host and the database only, so its ``repr`` can be logged.

    Raises:
        ConfigurationError: psycopg is not installed, or the URL is wrong. Never repeats values.
    """
    psycopg, connection_class = _driver()
    parameters = _parameters(url, lock_timeout)
    unknown = parameters.keys() - _known_parameters(psycopg)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ConfigurationError(
            [f"The database URL has parameters that PostgreSQL's libpq does not know: {names}."]
        )

    def connect() -> Any:
        return connection_class.connect(**parameters, prepare_threshold=None)

    return create_engine(
        URL.create("postgresql+psycopg", host=url.host, port=url.port, database=url.database),
        creator=connect,
        poolclass=NullPool,
        pool_reset_on_return=None,  # it is closed instead
        hide_parameters=True,
        use_native_hstore=False,  # looking for that type would be a query a connection
    )


def be_patient(connection: Connection, seconds: int) -> None:
    """Let the statements of this transaction wait and work for longer than usual."""
    driver_connection: Any = connection.connection.driver_connection
    driver_connection.patience = float(seconds)
    for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        connection.exec_driver_sql(f"SET LOCAL {setting} = '{seconds}s'")


def _driver() -> tuple[Any, Any]:
    """psycopg, and the class of our connections."""
    try:
        ours = import_module("kmsjwks.storage.psycopg_connection")
        return import_module("psycopg"), ours.BoundedConnection
    except ImportError:  # also raised by psycopg itself when it finds no libpq
        raise ConfigurationError(
            [
                "The driver for PostgreSQL is not installed. Install kmsjwks with its extra: "
                "pip install 'kmsjwks[postgresql]'."
            ]
        ) from None


def _parameters(url: URL, lock_timeout: float) -> dict[str, Any]:
    if not url.database:
        raise ConfigurationError([f"The database URL names no database. Write {FORM}."])
    given = {
        name: value if isinstance(value, str) else ",".join(value)  # libpq's form of several
        for name, value in url.query.items()
    }
    settings = _SERVER_SETTINGS | {"lock_timeout": round(lock_timeout * 1000)}
    options = [f"-c {name}={value}" for name, value in settings.items()]
    return {
        **_CLIENT_DEFAULTS,
        **url.translate_connect_args(username="user", database="dbname"),
        **given,
        "options": " ".join([*options, given.get("options", "")]).strip(),
    }


def _known_parameters(psycopg: Any) -> set[str]:
    return {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
