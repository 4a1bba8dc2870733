"""The options of a PKCS#11 backend: RFC 7512 URIs, PIN sources, every mistake at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kmsjwks.backends.pkcs11.settings import Pkcs11Settings, parse_settings
from kmsjwks.backends.pkcs11.uri import UriError, parse_uri
from kmsjwks.domain.errors import BackendUnavailable, ConfigurationError

PIN = "s3cret-pin-0815"
MINIMAL = {"module_path": "/lib/m.so", "token_label": "t"}


def parse(
    options: Mapping[str, object], base: Path, environ: Mapping[str, str] | None = None
) -> Pkcs11Settings:
    return parse_settings("hsm", options, base=base, state=base / "state", environ=environ or {})


def pin_of(base: Path, environ: Mapping[str, str] | None = None, **options: object) -> str:
    source = parse({**MINIMAL, **options}, base, environ).pin
    assert source is not None
    return source.read()


def problems_of(options: Mapping[str, object], base: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parse(options, base)
    assert PIN not in str(caught.value)
    assert all(problem.startswith("backends.hsm.") for problem in caught.value.problems)
    return caught.value.problems


class TestUri:
    def test_every_attribute_that_is_used(self) -> None:
        assert parse_uri(
            "pkcs11:token=My%20token%3B%2F%25;serial=0123abc"
            "?module-path=/usr/lib/a%26b.so&pin-source=file:/run/pin"
        ) == {
            "token_label": "My token;/%",
            "token_serial": "0123abc",
            "module_path": "/usr/lib/a&b.so",
            "pin_source": "file:/run/pin",
        }

    def test_utf_8_and_literal_plus(self) -> None:
        """RFC 7512 section 2.3: percent-encoded UTF-8; unlike in forms, '+' is itself."""
        assert parse_uri("pkcs11:token=Schl%C3%BCssel+1")["token_label"] == "Schlüssel+1"

    @pytest.mark.parametrize("uri", ["pkcs11:", "PKCS11:", "pkcs11:?"])
    def test_empty(self, uri: str) -> None:
        assert parse_uri(uri) == {}

    def test_what_says_nothing_here_is_passed_over(self) -> None:
        assert parse_uri("pkcs11:manufacturer=M;model=X;token=t") == {"token_label": "t"}

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("token=t", "pkcs11:"),
            ("http://token", "pkcs11:"),
            ("pkcs11:token", "name=value"),
            ("pkcs11:tokn=t", "'tokn'"),
            ("pkcs11:token=a;token=b", "twice"),
            ("pkcs11:object=key;token=a", "'object'"),
            (f"pkcs11:token=a?pin-value={PIN}&pin-value={PIN}", "twice"),
            (f"pkcs11:token=a?pin={PIN}", "'pin'"),
            (f"pkcs11:token=a?{PIN}", "name=value"),
            ("pkcs11:token=%zz", "percent"),
            (f"pkcs11:token=a?pin-value={PIN}%", "percent"),
            (f"pkcs11:token=%ff?pin-value={PIN}", "UTF-8"),
            (f"pkcs11:token=a?pin-value={PIN}%ff", "UTF-8"),
        ],
    )
    def test_mistakes_are_told_without_values(self, uri: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(UriError) as caught:
            parse_uri(uri)
        assert said in str(caught.value)
        assert PIN not in str(caught.value)
        assert any(
            problem.startswith("backends.hsm.uri: ")
            for problem in problems_of({"uri": uri}, tmp_path)
        )

    def test_fills_the_options(self, tmp_path: Path) -> None:
        settings = parse(
            {"uri": "pkcs11:token=t?module-path=/lib/m.so&pin-source=file:pin"}, tmp_path
        )
        assert (settings.module_path, settings.token_label) == ("/lib/m.so", "t")
        (tmp_path / "pin").write_text(f"{PIN}\n")
        assert settings.pin is not None
        assert settings.pin.read() == PIN

    def test_an_option_set_twice(self, tmp_path: Path) -> None:
        problems = problems_of({**MINIMAL, "uri": "pkcs11:token=t"}, tmp_path)
        assert len(problems) == 1
        assert problems[0].startswith("backends.hsm.token_label: set both")


class TestPin:
    def test_from_a_file_beside_the_configuration(self, tmp_path: Path) -> None:
        (tmp_path / "pin").write_text(f"{PIN}\nsecond line\n")
        assert pin_of(tmp_path, pin_file="pin") == PIN
        assert pin_of(tmp_path, pin_file=str(tmp_path / "pin")) == PIN

    @pytest.mark.parametrize("form", ["file:{}", "file://{}", "{}"])
    def test_from_a_pin_source_file(self, form: str, tmp_path: Path) -> None:
        """RFC 7512 section 2.4."""
        path = tmp_path / "the pin"
        path.write_text(PIN)
        assert pin_of(tmp_path, pin_source=form.format(path)) == PIN
        quoted = form.format(str(path).replace(" ", "%20"))
        uri = f"pkcs11:token=t?module-path=m&pin-source={quoted}"
        source = parse({"uri": uri}, tmp_path).pin
        assert source is not None
        assert source.read() == PIN

    def test_from_a_pin_source_command(self, tmp_path: Path) -> None:
        """RFC 7512 section 2.4: a value that starts with '|' is a command."""
        assert pin_of(tmp_path, pin_source=f"|/bin/echo {PIN}") == PIN
        uri = f"pkcs11:token=t?module-path=m&pin-source=%7C/bin/echo%20{PIN}"
        source = parse({"uri": uri}, tmp_path).pin
        assert source is not None
        assert source.read() == PIN

    def test_from_a_file_that_the_environment_names(self, tmp_path: Path) -> None:
        (tmp_path / "pin").write_text(PIN)
        environ = {"HSM_PIN_FILE": str(tmp_path / "pin")}
        assert pin_of(tmp_path, environ, pin_env_file="HSM_PIN_FILE") == PIN
        with pytest.raises(BackendUnavailable, match="HSM_PIN_FILE"):
            pin_of(tmp_path, {}, pin_env_file="HSM_PIN_FILE")

    def test_from_a_command_without_a_shell(self, tmp_path: Path) -> None:
        assert pin_of(tmp_path, pin_command=["/bin/echo", f"{PIN};$HOME"]) == f"{PIN};$HOME"

    def test_is_read_anew_each_time(self, tmp_path: Path) -> None:
        source = parse({**MINIMAL, "pin_file": "pin"}, tmp_path).pin
        assert source is not None
        for pin in ("old", "new"):
            (tmp_path / "pin").write_text(pin)
            assert source.read() == pin

    @pytest.mark.parametrize(
        "options",
        [
            {"pin_file": "missing"},
            {"pin_file": "empty"},
            {"pin_file": "binary"},
            {"pin_file": "."},
            {"pin_command": ["/bin/false"]},
            {"pin_command": ["/no/such/program", PIN]},
            {"pin_command": ["/bin/sh", "-c", f"echo {PIN}; echo {PIN} >&2; exit 1"]},
            {"pin_command": ["/bin/true"]},
        ],
    )
    def test_that_cannot_be_had_is_denied(self, options: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        with pytest.raises(BackendUnavailable) as caught:
            pin_of(tmp_path, **options)
        assert PIN not in str(caught.value)
        assert PIN not in repr(caught.value.__cause__)

    def test_in_the_configuration_only_when_allowed(self, tmp_path: Path) -> None:
        uri = f"pkcs11:token=t?module-path=m&pin-value={PIN}"
        for options in ({**MINIMAL, "pin_value": PIN}, {"uri": uri}):
            (problem,) = problems_of(options, tmp_path)
            assert problem.startswith("backends.hsm.pin_value: ")
            settings = parse({**options, "allow_inline_pin": True}, tmp_path)
            assert settings.pin is not None
            assert settings.pin.read() == PIN
            assert PIN not in repr(settings)

    def test_none_for_a_token_that_asks_for_none(self, tmp_path: Path) -> None:
        assert parse(MINIMAL, tmp_path).pin is None

    def test_from_one_place_only(self, tmp_path: Path) -> None:
        (problem,) = problems_of({**MINIMAL, "pin_file": "a", "pin_command": ["b"]}, tmp_path)
        assert "pin_file, pin_command" in problem


class TestMistakes:
    def test_all_at_once(self, tmp_path: Path) -> None:
        problems = problems_of(
            {
                "modul_path": "x",
                "sessions": 0,
                "call_timeout": -1,
                "init": "sometimes",
                "private_key_usage": ["sing"],
                "pin_value": PIN,
            },
            tmp_path,
        )
        for option in (
            "modul_path",
            "sessions",
            "call_timeout",
            "init",
            "private_key_usage",
            "module_path",
            "token_label",
            "pin_value",
        ):
            assert any(one.startswith(f"backends.hsm.{option}") for one in problems), option

    def test_wrong_types_do_not_quote_the_value(self, tmp_path: Path) -> None:
        problems = problems_of({**MINIMAL, "pin_value": [PIN], "pin_command": PIN}, tmp_path)
        assert any(one.startswith("backends.hsm.pin_value") for one in problems)
        assert any(one.startswith("backends.hsm.pin_command") for one in problems)

    def test_missing_basics(self, tmp_path: Path) -> None:
        problems = problems_of({}, tmp_path)
        assert [one.split(":")[0].rpartition(".")[2] for one in problems] == [
            "module_path",
            "token_label",
        ]

    def test_a_key_that_may_not_sign(self, tmp_path: Path) -> None:
        (problem,) = problems_of({**MINIMAL, "private_key_usage": ["decrypt"]}, tmp_path)
        assert problem.startswith("backends.hsm.private_key_usage: ")

    def test_numbers_from_the_environment_are_text(self, tmp_path: Path) -> None:
        settings = parse({**MINIMAL, "sessions": "8", "call_timeout": "1.5"}, tmp_path)
        assert (settings.sessions, settings.call_timeout) == (8, 1.5)

    def test_base_stands_for_the_directory_of_the_configuration(self, tmp_path: Path) -> None:
        settings = parse(
            {
                **MINIMAL,
                "environment": {"SOFTHSM2_CONF": "{base}/softhsm2.conf"},
                "prepare_command": ["{base}/provision.sh", "--heal"],
            },
            tmp_path,
        )
        assert settings.environment == {"SOFTHSM2_CONF": f"{tmp_path}/softhsm2.conf"}
        assert settings.prepare_command == (f"{tmp_path}/provision.sh", "--heal")
