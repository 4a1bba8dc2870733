"""Files that others may change or read although the service's safety depends on them."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from kmsjwks.config import Settings
from kmsjwks.config.environment import PREFIX
from kmsjwks.config.places import is_secret
from kmsjwks.config.tomlfile import read_config_file
from kmsjwks.domain.errors import ConfigurationError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_permissions(settings: Settings, environ: Mapping[str, str]) -> None:
    """Only the mode is judged: in containers the owner is often a user that only the host knows.
    A group may read secrets, which is how packages and orchestrators hand them over.

    Raises:
        ConfigurationError: every path that is too open, with the command that closes it.
    """
    problems = [
        *_configuration(settings.config_path),
        *(one for path in _secret_files(settings, environ) for one in _secret(*path)),
        *(one for path in _trusted_files(settings) for one in _changeable(*path)),
        *_state("state.directory", settings.state.directory),
        *_database(settings),
    ]
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))


def _configuration(path: Path) -> Iterator[str]:
    """Hashes of tokens may be read: tokens are random, and nobody guesses 192 bits."""
    yield from _changeable(str(path), path, "give themselves grants")
    yield from _replaceable(str(path), path.absolute().parent, "replace the configuration")
    if _holds_secret(read_config_file(path).data):
        yield from _readable("it holds a secret", path)


def _holds_secret(data: Mapping[str, object]) -> bool:
    database, backends = data.get("database"), data.get("backends")
    url = database.get("url") if isinstance(database, Mapping) else None
    if isinstance(url, str) and ("@" in url or "password=" in url) and ":" in url.partition(":")[2]:
        return True
    tables = backends.values() if isinstance(backends, Mapping) else ()
    return any(
        _is_secret_option(name, value)
        for table in tables
        if isinstance(table, Mapping)
        for name, value in table.items()
    )


def _is_secret_option(name: str, value: object) -> bool:
    if name == "uri":
        return isinstance(value, str) and "pin-value=" in value
    if name.startswith("token_") or name.endswith(("_file", "_command", "_source")):
        return False
    return isinstance(value, str) and is_secret((name,))


def _secret_files(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    base = settings.base_directory
    for backend in settings.backends.values():
        for option, value in backend.options.items():
            if isinstance(value, str) and (path := _pin_file(option, value, environ)):
                yield f"backends.{backend.name}.{option}", base / path
    for name, value in environ.items():
        if name.startswith(PREFIX) and name.endswith("_FILE") and value:
            location = tuple(name.removeprefix(PREFIX).removesuffix("_FILE").lower().split("__"))
            if is_secret(location):
                yield f"environment {name}", base / value
    for issuer in settings.oidc:
        if issuer.token_file is not None:
            yield "oidc.token_file", issuer.token_file


def _trusted_files(settings: Settings) -> Iterator[tuple[str, Path, str]]:
    """What says who somebody is, and code; with what others could do who write to it."""
    if settings.mtls is not None and settings.mtls.client_ca is not None:
        yield "mtls.client_ca", settings.mtls.client_ca, "be any client with a certificate"
    for issuer in settings.oidc:
        if issuer.ca_file is not None:
            yield "oidc.ca_file", issuer.ca_file, f"be the issuer {issuer.issuer}"
    for backend in settings.backends.values():
        for option, value in backend.options.items():
            if isinstance(value, str) and (path := _module(option, value)):
                where = f"backends.{backend.name}.{option}"
                yield where, settings.base_directory / path, "run code in the service"


def _module(option: str, value: str) -> str:
    """The PKCS#11 module that an option names; empty where it names none."""
    if option == "uri":
        return _attribute(value, "module-path")
    return value if option == "module_path" else ""


def _pin_file(option: str, value: str, environ: Mapping[str, str]) -> str:
    """The file that an option of a PKCS#11 backend names; empty where it names none."""
    if option == "pin_env_file":
        return environ.get(value, "")
    if option == "pin_source":
        return "" if value.startswith("|") else _of_uri(value)
    if option == "uri":
        return _pin_source_of(value)
    return value if option == "pin_file" else ""


def _of_uri(source: str) -> str:
    return source.removeprefix("file://").removeprefix("file:")


def _pin_source_of(uri: str) -> str:
    """Empty for a command or where there is none."""
    source = _attribute(uri, "pin-source")
    return "" if source.startswith("|") else _of_uri(source)


def _attribute(uri: str, wanted: str) -> str:
    """RFC 7512 section 2.4; empty where it is not there."""
    for part in uri.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if name == wanted:
            return unquote(value)
    return ""


def _secret(where: str, path: Path) -> Iterator[str]:
    yield from _changeable(where, path, "replace the secret")
    yield from _readable(where, path)


def _state(where: str, directory: Path) -> Iterator[str]:
    yield from _replaceable(where, directory, "replace what the service keeps there", sticky=False)


def _database(settings: Settings) -> Iterator[str]:
    if not settings.database.url.startswith("sqlite"):
        return
    path = Path(settings.database.url.partition(":///")[2].partition("?")[0])
    yield from _changeable("database.url", path, "change keysets and keys")
    yield from _replaceable("database.url", path.parent, "replace the database")


def _mode(path: Path) -> int:
    """0 where nothing can be seen: who uses it says what is wrong."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _changeable(where: str, path: Path, so: str) -> Iterator[str]:
    mode = _mode(path)
    if stat.S_ISREG(mode) and mode & _OTHERS_WRITE:
        yield f"{where}: others may write to {path}, so they could {so}; run: chmod go-w {path}"


def _replaceable(where: str, directory: Path, so: str, *, sticky: bool = True) -> Iterator[str]:
    """``sticky``: such a directory, as /tmp is one, will do, because entries are their owner's."""
    mode = _mode(directory)
    if not stat.S_ISDIR(mode) or (sticky and mode & stat.S_ISVTX):
        return
    if mode & _OTHERS_WRITE:
        yield (
            f"{where}: others may write to the directory {directory}, so they could {so}; "
            f"run: chmod go-w {directory}"
        )


def _readable(where: str, path: Path) -> Iterator[str]:
    mode = _mode(path)
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        yield f"{where}: everybody may read {path}; run: chmod o-rwx {path}"
