"""The options of a PKCS#11 backend, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kmsjwks.backends.pkcs11.pin import (
    CommandPin,
    EnvironmentFilePin,
    FilePin,
    InlinePin,
    PinSource,
)
from kmsjwks.backends.pkcs11.uri import UriError, parse_uri
from kmsjwks.domain.errors import ConfigurationError

InitMode = Literal["auto", "locking", "null"]
Usage = Literal["sign", "decrypt", "unwrap", "derive", "verify", "encrypt", "wrap"]
# Lax where the environment, which only knows text, may set a number.
Seconds = Annotated[float, Field(gt=0, le=600, strict=False)]


@dataclass(frozen=True, slots=True)
class Pkcs11Settings:
    """``call_timeout``, ``generate_timeout`` and ``replace_after`` in seconds."""

    name: str
    module_path: str
    token_label: str | None
    token_serial: str | None
    pin: PinSource | None
    init: InitMode
    reserved: str | None
    sessions: int
    call_timeout: float
    generate_timeout: float
    replace_after: float
    private_key_usage: frozenset[str]
    public_key_usage: frozenset[str]
    environment: Mapping[str, str]
    prepare_command: tuple[str, ...]
    lock_path: Path


class _Options(BaseModel):
    """The table [backends.NAME] of the configuration file, without ``type``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    uri: str | None = None
    module_path: str | None = None
    token_label: str | None = None
    token_serial: str | None = None
    pin_file: str | None = None
    pin_env_file: str | None = None
    pin_command: list[str] | None = Field(default=None, min_length=1)
    pin_source: str | None = None
    pin_value: str | None = Field(default=None, repr=False)
    allow_inline_pin: bool = Field(default=False, strict=False)
    init: InitMode = "auto"
    reserved: str | None = None
    sessions: int = Field(default=4, ge=1, le=256, strict=False)
    call_timeout: Seconds = 3.0
    generate_timeout: Seconds = 60.0
    replace_after: Seconds = 10.0
    private_key_usage: list[Usage] = ["sign"]
    public_key_usage: list[Usage] = ["verify"]
    environment: dict[str, str] = {}
    prepare_command: list[str] = []


def parse_settings(
    name: str,
    options: Mapping[str, object],
    *,
    base: Path,
    state: Path,
    environ: Mapping[str, str],
) -> Pkcs11Settings:
    """``base``: directory that relative paths start from; ``state``: directory for the lock file.

    Raises:
        ConfigurationError: every mistake at once, none quoting a PIN.
    """
    merged, problems = _merge_uri(options)
    model, more = _validate(merged)
    problems += more
    wrong = {problem.split(":")[0].split(".")[0] for problem in problems}
    if "uri" in wrong:  # what it should have said is not missing
        wrong |= {"module_path", "token_label"}
    problems += [one for one in _cross_checks(model) if one.split(":")[0] not in wrong]
    if problems:
        raise _refused(name, problems)
    return Pkcs11Settings(
        name=name,
        module_path=model.module_path or "",
        token_label=model.token_label,
        token_serial=model.token_serial,
        pin=_pin_source(model, base, environ),
        init=model.init,
        reserved=model.reserved,
        sessions=model.sessions,
        call_timeout=model.call_timeout,
        generate_timeout=model.generate_timeout,
        replace_after=model.replace_after,
        private_key_usage=frozenset(model.private_key_usage),
        public_key_usage=frozenset(model.public_key_usage),
        environment={key: _expand(value, base) for key, value in model.environment.items()},
        prepare_command=tuple(_expand(part, base) for part in model.prepare_command),
        lock_path=state / f"pkcs11-{name}.lock",
    )


def _validate(merged: Mapping[str, object]) -> tuple[_Options, list[str]]:
    """The options, without those that are wrong by themselves, and what is wrong with these."""
    try:
        return _Options.model_validate(merged), []
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False)
    problems = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in wrong]
    names = {one["loc"][0] for one in wrong}
    rest = {name: value for name, value in merged.items() if name not in names}
    return _Options.model_validate(rest), problems


def _refused(name: str, problems: list[str]) -> ConfigurationError:
    return ConfigurationError([f"backends.{name}.{problem}" for problem in problems])


def _merge_uri(options: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    merged, uri = dict(options), options.get("uri")
    if not isinstance(uri, str):
        return merged, []
    try:
        parsed = parse_uri(uri)
    except UriError as error:
        return merged, [f"uri: {error}"]
    twice = [option for option in parsed if option in options]
    merged.update(parsed)
    return merged, [f"{option}: set both in the uri and by itself; keep one" for option in twice]


def _cross_checks(model: _Options) -> list[str]:
    problems = []
    if not model.module_path:
        problems.append("module_path: missing; give it, or module-path in the uri")
    if not model.token_label and not model.token_serial:
        problems.append("token_label: missing; name the token by label or token_serial")
    sources = [
        option
        for option in ("pin_file", "pin_env_file", "pin_command", "pin_source", "pin_value")
        if getattr(model, option)
    ]
    if len(sources) > 1:
        problems.append(f"{sources[1]}: more than one PIN source ({', '.join(sources)}); keep one")
    if model.pin_value and not model.allow_inline_pin:
        problems.append(
            "pin_value: a PIN in the configuration is refused; use pin_file, pin_env_file or "
            "pin_command (or set allow_inline_pin = true, for tests)"
        )
    if "sign" not in model.private_key_usage:
        problems.append("private_key_usage: must hold 'sign'")
    return problems


def _pin_source(model: _Options, base: Path, environ: Mapping[str, str]) -> PinSource | None:
    source = model.pin_source or ""
    if model.pin_env_file:
        return EnvironmentFilePin(model.pin_env_file, dict(environ))
    if model.pin_value:
        return InlinePin(model.pin_value)
    if model.pin_command or source.startswith("|"):  # RFC 7512 section 2.4
        return CommandPin(tuple(model.pin_command or source[1:].split()), dict(environ))
    path = model.pin_file or source.removeprefix("file://").removeprefix("file:")
    return FilePin(base / path) if path else None


def _expand(value: str, base: Path) -> str:
    """``{base}`` stands for the configuration file's directory."""
    return value.replace("{base}", str(base))
