"""The configuration: precedence, places of mistakes, secrets."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from hashlib import sha256
from pathlib import Path
from textwrap import dedent

import pytest

from kmsjwks.config import RESERVED_VARIABLES, Settings, find_config_file, load
from kmsjwks.config.schema import fixed_settings
from kmsjwks.config.tomlfile import scan_lines
from kmsjwks.domain.access import Action
from kmsjwks.domain.approvals import ProtectedAct
from kmsjwks.domain.errors import ConfigurationError

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "configuration.md"
BACKEND = '[backends.softhsm]\ntype = "pkcs11"\n'
HASH_A = sha256(b"a").hexdigest()
HASH_B = sha256(b"b").hexdigest()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return Config(tmp_path)


class Config:
    """A configuration in a directory of its own, which is also the working directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ: dict[str, str] = {}
        self.overrides: dict[str, object] = {}

    def load(self, text: str = BACKEND) -> Settings:
        path = Path("kmsjwks.toml")
        path.write_text(dedent(text), encoding="utf-8")
        return load(path, environ=self.environ, overrides=self.overrides)

    def problems(self, text: str = BACKEND) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            self.load(text)
        return list(caught.value.problems)

    def secret(self, name: str, content: str) -> str:
        path = self.directory / name
        path.write_text(content, encoding="utf-8")
        return str(path)

    def credentials(self, files: Mapping[str, str]) -> None:
        directory = self.directory / "credentials"
        directory.mkdir()
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
        self.environ["CREDENTIALS_DIRECTORY"] = str(directory)


def client(name: str, *hashes: str) -> str:
    listed = ", ".join(f'"{value}"' for value in hashes)
    return f"[clients.{name}]\ntoken_sha256 = [{listed}]\n"


class TestDefaultsAndValues:
    def test_one_backend_is_enough(self, config: Config) -> None:
        settings = config.load()
        assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
        assert (settings.server.workers, settings.server.max_concurrency) == (0, 128)
        assert settings.server.base_url == "http://127.0.0.1:8080"
        assert settings.server.max_body_bytes == 65536
        assert settings.server.shutdown_timeout == 10.0
        assert settings.jwks.max_age == 300
        assert settings.snapshot.refresh_interval == 2.0
        assert (settings.logging.level, settings.logging.format) == ("info", "json")
        assert settings.clients == ()
        assert settings.warnings == ()
        assert settings.config_path == Path("kmsjwks.toml")
        assert settings.base_directory == config.directory

    def test_relative_paths_start_at_the_file(self, config: Config) -> None:
        nested = config.directory / "etc" / "kmsjwks.toml"
        nested.parent.mkdir()
        nested.write_text(BACKEND)
        settings = load(Path("etc/kmsjwks.toml"), environ={})
        base = config.directory / "etc"
        assert settings.database.url == f"sqlite:///{base}/var/kmsjwks.db"
        assert settings.state.directory == base / "var/state"
        assert settings.audit.directory == base / "var/audit"

    def test_a_linked_file_is_where_the_link_is(self, config: Config) -> None:
        target = config.directory / "..data" / "kmsjwks.toml"
        target.parent.mkdir()
        target.write_text(BACKEND)
        link = config.directory / "linked.toml"
        link.symlink_to(target)
        assert load(link, environ={}).base_directory == config.directory

    def test_absolute_paths_stay(self, config: Config) -> None:
        settings = config.load(
            """
            backends.softhsm.type = "pkcs11"
            database.url = "sqlite:////srv/k.db?timeout=5"
            state.directory = "/srv/state"
            """
        )
        assert settings.database.url == "sqlite:////srv/k.db?timeout=5"
        assert settings.state.directory == Path("/srv/state")

    def test_options_of_a_backend_are_passed_on(self, config: Config) -> None:
        settings = config.load(
            BACKEND + 'pin_file = "pin"\nsessions = 8\nusage = ["sign"]\nnested = { a = true }\n'
        )
        backend = settings.backends["softhsm"]
        assert (backend.name, backend.type) == ("softhsm", "pkcs11")
        assert dict(backend.options) == {
            "pin_file": "pin",
            "sessions": 8,
            "usage": ["sign"],
            "nested": {"a": True},
        }

    def test_grants(self, config: Config) -> None:
        settings = config.load(
            BACKEND
            + client("demo", HASH_A, HASH_B)
            + '[[clients.demo.grants]]\nactions = ["sign", "read"]\nkeysets = ["demo", "team-*"]\n'
        )
        (demo,) = settings.clients
        assert demo.token_sha256 == (HASH_A, HASH_B)
        assert demo.grants[0].actions == {Action.SIGN, Action.READ}
        assert demo.grants[0].keysets == ("demo", "team-*")

    def test_settings_are_immutable(self, config: Config) -> None:
        settings = config.load()
        with pytest.raises(FrozenInstanceError):
            settings.server.port = 1  # type: ignore[misc]
        with pytest.raises(TypeError):
            settings.backends["x"] = settings.backends["softhsm"]  # type: ignore[index]

    def test_base_url_follows_host_and_port(self, config: Config) -> None:
        config.overrides = {"server.host": "::1", "server.port": 9000}
        assert config.load().server.base_url == "http://[::1]:9000"


class TestPrecedence:
    def test_flag_environment_credential_file_default(self, config: Config) -> None:
        text = BACKEND + "[server]\nport = 4\n"
        assert config.load(BACKEND).server.port == 8080
        assert config.load(text).server.port == 4
        config.credentials({"server.port": "3\n"})
        assert config.load(text).server.port == 3
        config.environ["KMSJWKS_SERVER__PORT"] = "2"
        assert config.load(text).server.port == 2
        config.overrides["server.port"] = 1
        assert config.load(text).server.port == 1

    def test_a_file_of_the_environment_is_over_a_credential(self, config: Config) -> None:
        config.credentials({"server.port": "3"})
        config.environ["KMSJWKS_SERVER__PORT_FILE"] = config.secret("port", "2\n")
        assert config.load().server.port == 2

    def test_flags_that_were_not_given(self, config: Config) -> None:
        config.overrides = {"server.port": None, "server.host": None}
        assert config.load(BACKEND + "[server]\nport = 4\n").server.port == 4

    def test_flags_of_other_types(self, config: Config) -> None:
        config.overrides = {
            "state.directory": Path("/srv"),
            "server.port": "7",
            "clients.a.token_sha256": (HASH_A,),
            "backends.my.hsm.type": "pkcs11",
        }
        settings = config.load()
        assert settings.state.directory == Path("/srv")
        assert settings.server.port == 7
        assert settings.clients[0].token_sha256 == (HASH_A,)
        assert set(settings.backends) == {"softhsm", "my.hsm"}

    def test_unknown_flag(self, config: Config) -> None:
        config.overrides = {"server.prot": 1}
        assert config.problems() == [
            "command line: server.prot: unknown setting; did you mean server.port?"
        ]

    def test_the_place_of_a_wrong_flag(self, config: Config) -> None:
        config.overrides = {"server.port": 0}
        assert config.problems(BACKEND + "[server]\nport = 4\n") == [
            "command line: server.port: must be between 1 and 65535; you wrote 0"
        ]


class TestFindingTheFile:
    def test_order(self, config: Config) -> None:
        default = config.directory / "kmsjwks.toml"
        named, explicit = config.directory / "named.toml", config.directory / "explicit.toml"
        for path in (default, named, explicit):
            path.write_text(BACKEND)
        environ = {"KMSJWKS_CONFIG": str(named)}
        assert load(explicit, environ=environ).config_path == explicit
        assert load(None, environ=environ).config_path == named
        assert load(None, environ={}).config_path == Path("kmsjwks.toml")

    def test_the_second_default(self, config: Config) -> None:
        second = config.directory / "second.toml"
        second.write_text(BACKEND)
        assert find_config_file(None, {}, (Path("kmsjwks.toml"), second)) == second

    def test_none_says_where_it_was_looked_for(self, config: Config) -> None:
        etc = config.directory / "etc.toml"
        with pytest.raises(ConfigurationError) as caught:
            find_config_file(None, {}, (Path("kmsjwks.toml"), etc))
        assert str(caught.value) == (
            f"no configuration file: looked for ./kmsjwks.toml and {etc}; write one, or name it "
            "with --config or KMSJWKS_CONFIG"
        )

    @pytest.mark.usefixtures("config")
    def test_a_named_file_must_exist(self) -> None:
        Path("kmsjwks.toml").write_text(BACKEND)
        with pytest.raises(ConfigurationError, match="command line: there is no"):
            load(Path("nowhere.toml"), environ={})
        with pytest.raises(ConfigurationError, match="environment KMSJWKS_CONFIG: there is no"):
            load(None, environ={"KMSJWKS_CONFIG": "nowhere.toml"})

    def test_not_utf8(self, config: Config) -> None:
        path = config.directory / "latin.toml"
        path.write_bytes(b"# caf\xe9\n")
        with pytest.raises(ConfigurationError) as caught:
            load(path, environ={})
        assert caught.value.problems == (f"{path}: is not UTF-8 text (byte 6)",)


class TestEnvironment:
    def test_types(self, config: Config) -> None:
        config.environ = {
            "KMSJWKS_SERVER__PORT": "9000",
            "KMSJWKS_SNAPSHOT__REFRESH_INTERVAL": "0.5",
            "KMSJWKS_SERVER__SHUTDOWN_TIMEOUT": "30",
            "KMSJWKS_LOGGING__LEVEL": "debug",
            "KMSJWKS_CLIENTS__DEMO__TOKEN_SHA256": f'["{HASH_A}"]',
            "KMSJWKS_CLIENTS__DEMO__GRANTS": '[{"actions": ["sign"], "keysets": ["*"]}]',
        }
        settings = config.load()
        assert settings.server.port == 9000
        assert settings.snapshot.refresh_interval == 0.5
        assert settings.server.shutdown_timeout == 30.0
        assert settings.logging.level == "debug"
        assert settings.clients[0].grants[0].keysets == ("*",)

    def test_a_backend_from_the_environment_alone(self, config: Config) -> None:
        config.environ = {
            "KMSJWKS_BACKENDS__MY_HSM__TYPE": "pkcs11",
            "KMSJWKS_BACKENDS__MY_HSM__TOKEN": "0123",
        }
        backend = config.load("").backends["my_hsm"]
        assert (backend.type, dict(backend.options)) == ("pkcs11", {"token": "0123"})

    def test_an_option_takes_the_type_in_the_file(self, config: Config) -> None:
        text = BACKEND + 'sessions = 2\ndeadline = 1.5\nlogin = true\nusage = ["a"]\nserial = "7"\n'
        prefix = "KMSJWKS_BACKENDS__SOFTHSM__"
        config.environ = {
            f"{prefix}SESSIONS": "8",
            f"{prefix}DEADLINE": "2",
            f"{prefix}LOGIN": "false",
            f"{prefix}USAGE": '["b", "c"]',
            f"{prefix}SERIAL": "8",
            f"{prefix}OTHER": "9",
            f"{prefix}PIN_COMMAND": '["cat", "/pin"]',
            f"{prefix}ENVIRONMENT": '{"A_B": "c"}',
            f"{prefix}LABEL": "[no JSON",
        }
        assert dict(config.load(text).backends["softhsm"].options) == {
            "sessions": 8,
            "deadline": 2.0,
            "login": False,
            "usage": ["b", "c"],
            "serial": "8",
            "other": "9",
            "pin_command": ["cat", "/pin"],
            "environment": {"A_B": "c"},
            "label": "[no JSON",
        }

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("SERVER__PORT", "http", 'server.port: must be an integer; you wrote "http"'),
            ("SERVER__PORT", "", 'server.port: must be an integer; you wrote ""'),
            ("SERVER__PORT", "1_0", 'server.port: must be an integer; you wrote "1_0"'),
            (
                "SNAPSHOT__REFRESH_INTERVAL",
                "nan",
                'snapshot.refresh_interval: must be a number; you wrote "nan"',
            ),
            (
                "CLIENTS__A__TOKEN_SHA256",
                HASH_A,
                "clients.a.token_sha256: must be a list, written in JSON",
            ),
            (
                "CLIENTS__A__GRANTS",
                "[{]",
                'clients.a.grants: must be a list, written in JSON; you wrote "[{]"',
            ),
        ],
    )
    def test_wrong_type(self, config: Config, name: str, value: str, expected: str) -> None:
        config.environ = {f"KMSJWKS_{name}": value}
        text = BACKEND + client("a", HASH_B)
        assert config.problems(text) == [f"environment KMSJWKS_{name}: {expected}"]

    def test_the_place_is_the_variable_not_the_line(self, config: Config) -> None:
        config.environ = {"KMSJWKS_CLIENTS__A__GRANTS": '[{"actions": ["sing"], "keysets": ["*"]}]'}
        text = (
            BACKEND
            + client("a", HASH_A)
            + '[[clients.a.grants]]\nactions = ["sign"]\nkeysets = ["x"]\n'
        )
        (problem,) = config.problems(text)
        assert problem.startswith(
            "environment KMSJWKS_CLIENTS__A__GRANTS: clients.a.grants[0].actions[0]: must be"
        )

    def test_a_backend_that_only_a_misspelt_variable_names(self, config: Config) -> None:
        config.environ = {"KMSJWKS_BACKENDS__SOFTHSN__URI": "x"}
        assert config.problems() == [
            "environment KMSJWKS_BACKENDS__SOFTHSN__URI: backends.softhsn.type: is required"
        ]

    @pytest.mark.parametrize(
        ("name", "guess"),
        [
            ("SERVER__PROT", "SERVER__PORT"),
            ("SERVER_PORT", "SERVER__PORT"),
            ("DATABASE__ULR_FILE", "DATABASE__URL_FILE"),
            ("BACKEND__SOFTHSM__URI", "BACKENDS__SOFTHSM__URI"),
            ("BACKENDS_SOFTHSM_TYPE", "BACKENDS__SOFTHSM__TYPE"),
            ("CLIENTS__A__TOKENS_SHA256", "CLIENTS__A__TOKEN_SHA256"),
            ("CLIENTS__A__GRANT_FILE", "CLIENTS__A__GRANTS_FILE"),
            ("CONFIGS", "CONFIG"),
        ],
    )
    def test_unknown_with_suggestion(self, config: Config, name: str, guess: str) -> None:
        config.environ = {f"KMSJWKS_{name}": "hush"}
        assert config.problems(BACKEND + client("a", HASH_A)) == [
            f"environment KMSJWKS_{name}: unknown variable; did you mean KMSJWKS_{guess}?"
        ]

    @pytest.mark.parametrize(
        "name", ["KMSJWKS_", "KMSJWKS_ZZZZZZ", "KMSJWKS_SERVER__", "KMSJWKS_BACKENDS__SOFTHSM"]
    )
    def test_unknown(self, config: Config, name: str) -> None:
        config.environ = {name: "1"}
        (problem,) = config.problems()
        assert problem.startswith(f"environment {name}: unknown variable")

    def test_reserved_and_foreign_variables(self, config: Config) -> None:
        config.environ = dict.fromkeys(RESERVED_VARIABLES, "x") | {"PATH": "/bin", "kmsjwks_x": "1"}
        assert config.load().server.port == 8080

    def test_the_same_setting_in_two_spellings(self, config: Config) -> None:
        config.environ = {"KMSJWKS_SERVER__PORT": "1", "KMSJWKS_server__port": "2"}
        assert config.problems() == [
            "environment KMSJWKS_SERVER__PORT: the same setting is given by KMSJWKS_server__port; "
            "keep one"
        ]


class TestValuesFromFiles:
    @pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
    def test_trailing_newline(self, config: Config, ending: str) -> None:
        config.environ["KMSJWKS_DATABASE__URL_FILE"] = config.secret(
            "dsn", "sqlite:////srv/secret.db" + ending
        )
        assert config.load().database.url == "sqlite:////srv/secret.db"

    def test_relative_to_the_configuration_file(self, config: Config) -> None:
        config.secret("port", "9\n")
        config.environ["KMSJWKS_SERVER__PORT_FILE"] = "port"
        assert config.load().server.port == 9

    def test_options_and_clients(self, config: Config) -> None:
        config.environ = {
            "KMSJWKS_BACKENDS__SOFTHSM__URI_FILE": config.secret("uri", "pkcs11:token=a\n"),
            "KMSJWKS_CLIENTS__A__TOKEN_SHA256_FILE": config.secret("hash", f'["{HASH_A}"]\n'),
        }
        settings = config.load()
        assert dict(settings.backends["softhsm"].options) == {"uri": "pkcs11:token=a"}
        assert settings.clients[0].token_sha256 == (HASH_A,)

    def test_both_forms(self, config: Config) -> None:
        config.environ = {
            "KMSJWKS_DATABASE__URL": "sqlite:///a",
            "KMSJWKS_DATABASE__URL_FILE": config.secret("dsn", "sqlite:///b"),
        }
        assert config.problems() == [
            "environment KMSJWKS_DATABASE__URL: the same setting is given by "
            "KMSJWKS_DATABASE__URL_FILE; keep one"
        ]

    @pytest.mark.parametrize("option", ["pin_file", "user_pin_file", "so_pin_file", "pin_env_file"])
    def test_a_pin_file_is_the_option_of_the_backend(self, config: Config, option: str) -> None:
        path = config.secret("pin", "1234\n")
        config.environ = {f"KMSJWKS_BACKENDS__SOFTHSM__{option.upper()}": path}
        assert dict(config.load().backends["softhsm"].options) == {option: path}

    def test_an_option_that_the_file_names_so(self, config: Config) -> None:
        config.environ = {"KMSJWKS_BACKENDS__SOFTHSM__CREDENTIALS_FILE": "/b"}
        settings = config.load(BACKEND + 'credentials_file = "/a"\n')
        assert dict(settings.backends["softhsm"].options) == {"credentials_file": "/b"}

    def test_missing_and_empty(self, config: Config) -> None:
        config.environ = {
            "KMSJWKS_DATABASE__URL_FILE": "/nowhere/dsn",
            "KMSJWKS_SERVER__PORT_FILE": "",
        }
        assert config.problems() == [
            "environment KMSJWKS_DATABASE__URL_FILE: the file it names cannot be read: "
            "No such file or directory",
            "environment KMSJWKS_SERVER__PORT_FILE: must be the path of a file; it is empty",
        ]

    def test_endless_and_binary(self, config: Config) -> None:
        binary = config.directory / "binary"
        binary.write_bytes(b"\xff")
        config.environ = {
            "KMSJWKS_DATABASE__URL_FILE": "/dev/zero",
            "KMSJWKS_SERVER__PORT_FILE": str(binary),
        }
        assert [line.split(": ", 1)[1] for line in config.problems()] == [
            "the file it names is longer than 1048576 bytes",
            "the file it names is not UTF-8 text",
        ]


class TestCredentialsDirectory:
    def test_names_like_settings(self, config: Config) -> None:
        config.credentials(
            {
                "database.url": "sqlite:////srv/c.db\n",
                "backends.my-hsm.v2.type": "pkcs11\n",
                "backends.softhsm.pin_file": "/run/pin\n",
                "clients.a.token_sha256": f'["{HASH_A}"]',
            }
        )
        settings = config.load()
        assert settings.database.url == "sqlite:////srv/c.db"
        assert settings.backends["my-hsm.v2"].type == "pkcs11"
        assert dict(settings.backends["softhsm"].options) == {"pin_file": "/run/pin"}
        assert settings.clients[0].token_sha256 == (HASH_A,)

    def test_others_are_ignored(self, config: Config) -> None:
        names = ("database", "tls.key", "server.prot", "backends.x", "backends.X.y", "clients.a.b")
        config.credentials(dict.fromkeys(names, "other unit's"))
        (config.directory / "credentials" / "server.port").mkdir()
        assert config.load().server.port == 8080

    def test_a_wrong_one_is_named_and_not_shown(self, config: Config) -> None:
        config.credentials({"server.port": "hush"})
        assert config.problems() == ["credential server.port: server.port: must be an integer"]

    def test_no_such_directory(self, config: Config) -> None:
        config.environ["CREDENTIALS_DIRECTORY"] = "/nowhere"
        assert config.problems() == [
            "environment CREDENTIALS_DIRECTORY: /nowhere cannot be read: No such file or directory"
        ]


class TestMistakesInTheFile:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("server.port = 99999", "server.port: must be between 1 and 65535; you wrote 99999"),
            ("server.port = true", "server.port: must be an integer; you wrote true"),
            ("server.port = 80.0", "server.port: must be an integer; you wrote 80.0"),
            ('server.port = "80"', 'server.port: must be an integer; you wrote "80"'),
            ("server.port = []", "server.port: must be an integer"),
            ("server.workers = -1", "server.workers: must be between 0 and 1024; you wrote -1"),
            (
                "server.max_body_bytes = 0",
                "server.max_body_bytes: must be between 1024 and 16777216; you wrote 0",
            ),
            ("server.host = 1979-05-27", "server.host: must be text, in quotes"),
            (
                'server.host = "http://x"',
                "server.host: must be an IP address (IPv6 without brackets) or a host name, "
                'without a port; you wrote "http://x"',
            ),
            (
                "snapshot.refresh_interval = nan",
                "snapshot.refresh_interval: must be between 0.1 and 3600; "
                "you wrote a number beyond all bounds",
            ),
            (
                'logging.format = "yaml"',
                "logging.format: must be 'json' or 'text'; you wrote \"yaml\"",
            ),
            ("server.prot = 1", "server.prot: unknown setting; did you mean server.port?"),
            ("sever = 1", "sever: unknown setting; did you mean server?"),
            ("max_age = 1", "max_age: unknown setting; did you mean jwks.max_age?"),
            (
                'directory = "x"',
                "directory: unknown setting; did you mean state.directory or audit.directory?",
            ),
            ("jwks.zzz = 1", "jwks.zzz: unknown setting; known here are max_age"),
            ("server = 1", "server: must be a table, [server]"),
            ("clients = 1", "clients: must be a table, [clients]"),
            ('state.directory = "~/x"', "state.directory: must be written in full: ~ is not "),
            ("backends.x.y = 1", "backends.x.type: is required"),
            (
                'backends.x.type = "PKCS 11"',
                'backends.x.type: must be the name of a kind of backend, such as "pkcs11"',
            ),
            ('backends.Bad.type = "x"', "backends.Bad: the name must be lower-case letters"),
            ('backends."a b".type = "x"', 'backends."a b": the name must be lower-case letters'),
            (
                'clients.a.grants = [{ keysets = ["a"] }]',
                "clients.a.grants[0].actions: is required",
            ),
            (
                'clients.a.grants = [{ actions = [], keysets = ["a"] }]',
                "clients.a.grants[0].actions: must not be empty",
            ),
            (
                'clients.a.grants = [{ action = ["sign"], actions = ["sign"], keysets = ["a"] }]',
                "clients.a.grants[0].action: unknown setting; "
                "did you mean clients.a.grants[0].actions?",
            ),
            (
                'clients.a.grants = [{ actions = ["sing"], keysets = ["a"] }]',
                "clients.a.grants[0].actions[0]: must be 'sign', 'verify', 'read', 'rotate', "
                "'manage', 'destroy' or 'audit'; you wrote \"sing\"",
            ),
            (
                'clients.a.grants = [{ actions = ["sign"], keysets = ["Team A"] }]',
                "clients.a.grants[0].keysets[0]: must be a keyset name or a pattern",
            ),
        ],
    )
    def test_each_with_its_place(self, config: Config, line: str, expected: str) -> None:
        hash_line = f'clients.a.token_sha256 = ["{HASH_A}"]' if "clients.a" in line else ""
        text = f'# one\n{hash_line}\nbackends.softhsm.type = "pkcs11"\n{line}\n'
        (problem,) = config.problems(text)
        assert problem.startswith(f"kmsjwks.toml:4: {expected}")

    def test_no_backend(self, config: Config) -> None:
        expected = (
            "backends: at least one backend is required; add a table such as [backends.softhsm] "
            'with type = "pkcs11"'
        )
        assert config.problems("") == [f"kmsjwks.toml: {expected}"]
        assert config.problems("\n[backends]\n") == [f"kmsjwks.toml:2: {expected}"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[server]\nport = \n", "kmsjwks.toml:2:8: is not TOML: Invalid value"),
            ("a = 1\na = 2\n", "kmsjwks.toml:2:6: is not TOML: Cannot overwrite a value"),
            ("[server", "kmsjwks.toml: is not TOML: "),
        ],
    )
    def test_syntax(self, config: Config, text: str, expected: str) -> None:
        config.environ = {"KMSJWKS_SERVER__PROT": "1"}
        syntax, variable = config.problems(text)
        assert syntax.startswith(expected)
        assert variable.startswith("environment KMSJWKS_SERVER__PROT: unknown variable")

    def test_everything_at_once_in_order(self, config: Config) -> None:
        config.environ = {"KMSJWKS_SERVER__PROT": "1", "KMSJWKS_SERVER__WORKERS": "many"}
        config.overrides = {"jwks.max_age": 0}
        problems = config.problems(
            f"""\
            [server]
            port = 0
            hots = "x"
            base_url = "https://x/"

            [database]
            url = "sqlite://"

            [clients.a]
            token_sha256 = ["{HASH_A}"]
            [clients.b]
            token_sha256 = ["{HASH_A}", "abc"]
            """
        )
        unknown = "unknown variable; did you mean KMSJWKS_SERVER__PORT?"
        places = [re.split(r": ", problem, maxsplit=2)[:2] for problem in problems]
        assert places == [
            ["kmsjwks.toml:2", "server.port"],
            ["kmsjwks.toml:3", "server.hots"],
            ["kmsjwks.toml:4", "server.base_url"],
            ["kmsjwks.toml:7", "database.url"],
            ["kmsjwks.toml:12", "clients.b.token_sha256[1]"],
            ["kmsjwks.toml:12", "clients.b.token_sha256[0]"],
            ["environment KMSJWKS_SERVER__PROT", unknown],
            ["environment KMSJWKS_SERVER__WORKERS", "server.workers"],
            ["command line", "jwks.max_age"],
            ["kmsjwks.toml", "backends"],
        ]

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://x",
            "x",
            "https://",
            "https://x/",
            "https://x?q=1",
            "https://x#f",
            "https://x?",
            "https://x y",
            "https://x:99999",
            "https://[::1",
            "https://bücher.example",
        ],
    )
    def test_base_url(self, config: Config, url: str) -> None:
        (problem,) = config.problems(BACKEND + f'[server]\nbase_url = "{url}"\n')
        assert problem.startswith("kmsjwks.toml:4: server.base_url: must")
        assert problem.endswith(f'; you wrote "{url}"')

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite://",
            "sqlite:///",
            "sqlite:///:memory:",
            "sqlite:///x?mode=memory",
            "sqlite:///file:x?uri=true",
            "sqlite://var/x.db",
            "mysql://host/x",
            "postgres://host/x",
            "postgresql://host",
            "postgresql://host/",
            "postgresql://user:secret@host:port/x",
            "postgresql://user:pass#word@host/x",
            "postgresql://user@host/a b",
            "postgresql+asyncpg://host/x",
            "x.db",
        ],
    )
    def test_database_url(self, config: Config, url: str) -> None:
        (problem,) = config.problems(BACKEND + f'[database]\nurl = "{url}"\n')
        assert problem.startswith("kmsjwks.toml:4: database.url: ")
        assert "you wrote" not in problem

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://user@host/x",
            "postgresql+psycopg://user:p%23w@[::1]:5432/x?sslmode=verify-full",
            "postgresql://user@/x?host=/run/postgresql",
        ],
    )
    def test_a_postgresql_url_stays_as_it_is(self, config: Config, url: str) -> None:
        assert config.load(BACKEND + f'[database]\nurl = "{url}"\n').database.url == url

    def test_token_hashes(self, config: Config) -> None:
        empty = sha256(b"").hexdigest()
        problems = config.problems(
            BACKEND + client("a", HASH_A, HASH_A) + client("b", HASH_B.upper(), empty) + "x = 1\n"
        )
        assert [problem.split(": ", 1)[1] for problem in problems] == [
            "clients.a.token_sha256[1]: is the same token as clients.a.token_sha256[0]; "
            "give each its own",
            "clients.b.token_sha256[0]: must be the SHA-256 of the bearer token, "
            "as 64 lower-case hexadecimal digits",
            "clients.b.token_sha256[1]: is the hash of an empty token; hash the token itself",
            "clients.b.x: unknown setting; known here are token_sha256, tokens, oidc, "
            "certificates, grants",
        ]

    def test_a_client_without_token(self, config: Config) -> None:
        assert config.problems(BACKEND + "[clients.a]\n[clients.b]\ntoken_sha256 = []\n") == [
            f"kmsjwks.toml:{line}: clients.{name}: has no way to authenticate; "
            "add token_sha256, tokens, oidc or certificates"
            for line, name in ((3, "a"), (4, "b"))
        ]


class TestRotationPublicationMetrics:
    def test_defaults(self, config: Config) -> None:
        settings = config.load()
        rotation = settings.rotation
        assert (rotation.tick_interval, rotation.grace, rotation.skew) == (10.0, 900, 300)
        assert not rotation.check_public_jwks
        assert not rotation.development
        assert settings.publication.targets == ()
        assert settings.publication.s3_endpoint is None
        assert settings.metrics.port is None

    def test_given(self, config: Config) -> None:
        settings = config.load(
            f"""
            [rotation]
            tick_interval = 0.5
            grace = 60
            skew = 0
            check_public_jwks = true
            [publication]
            targets = ["/srv/www/jwks/", "s3://bucket/prefix", "file:///srv/jwks.json", "out/"]
            s3_endpoint = "https://minio.example.com:9000"
            [metrics]
            host = "::1"
            port = 9464
            {BACKEND.splitlines()[0]}
            {BACKEND.splitlines()[1]}
            """
        )
        assert settings.rotation.grace == 60
        assert settings.rotation.check_public_jwks
        assert settings.publication.targets[1] == "s3://bucket/prefix"
        assert settings.publication.s3_endpoint == "https://minio.example.com:9000"
        assert (settings.metrics.host, settings.metrics.port) == ("::1", 9464)

    def test_from_the_environment(self, config: Config) -> None:
        config.environ |= {
            "KMSJWKS_PUBLICATION__TARGETS": '["s3://keys"]',
            "KMSJWKS_ROTATION__DEVELOPMENT": "true",
            "KMSJWKS_METRICS__PORT": "9464",
        }
        settings = config.load()
        assert settings.publication.targets == ("s3://keys",)
        assert settings.rotation.development
        assert settings.metrics.port == 9464

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("rotation.grace = 0", "rotation.grace: must be between 1 and 86400"),
            ("rotation.skew = 3601", "rotation.skew: must be between 0 and 3600"),
            ("rotation.tick_interval = 0", "rotation.tick_interval: must be between"),
            ('rotation.development = "yes"', "rotation.development: must be true or false"),
            ("rotation.graze = 5", "did you mean rotation.grace?"),
            ('publication.targets = "x/"', "publication.targets: must be a list"),
            ('publication.targets = ["ftp://x/y"]', "no other scheme"),
            ('publication.targets = [" "]', "a file, a directory ending in"),
            ('publication.targets = ["~/x/"]', "a file, a directory ending in"),
            ('publication.s3_endpoint = "minio"', "must be a URL that starts with https://"),
            ('publication.s3_endpoint = "https://u@h"', "neither user name nor path"),
            ('publication.s3_endpoint = "https://h/p"', "neither user name nor path"),
            ("metrics.port = 65536", "metrics.port: must be between 0 and 65535"),
            ('metrics.host = "a b"', "metrics.host: must be an IP address"),
        ],
    )
    def test_mistakes(self, config: Config, line: str, said: str) -> None:
        (problem,) = config.problems(f"{line}\n{BACKEND}")
        assert problem.startswith("kmsjwks.toml:1: ")
        assert said in problem

    def test_development_is_warned_of(self, config: Config) -> None:
        (warning,) = config.load(f"rotation.development = true\n{BACKEND}").warnings
        assert "rotation.development" in warning
        assert "UNSAFE" in warning


class TestSigning:
    def test_all_signatures_are_verified_unless_told_otherwise(self, config: Config) -> None:
        settings = config.load()
        assert (settings.signing.verification, settings.signing.advice) == ("always", "")

    @pytest.mark.parametrize(("verification", "said"), [("sampled", "most"), ("off", "all")])
    def test_others_are_told_of(self, config: Config, verification: str, said: str) -> None:
        settings = config.load(f'signing.verification = "{verification}"\n{BACKEND}')
        assert settings.signing.verification == verification
        assert settings.warnings == ()
        assert settings.advice == (settings.audit.checkpoint_advice, settings.signing.advice)
        assert f'signing.verification is "{verification}": {said} signatures' in settings.advice[1]

    def test_the_environment_sets_it(self, config: Config) -> None:
        config.environ = {"KMSJWKS_SIGNING__VERIFICATION": "off"}
        assert config.load().signing.verification == "off"

    def test_another_is_refused(self, config: Config) -> None:
        assert config.problems(f'signing.verification = "never"\n{BACKEND}') == [
            "kmsjwks.toml:1: signing.verification: must be 'always', 'sampled' or 'off'; "
            'you wrote "never"'
        ]


class TestApprovals:
    def test_nothing_takes_two_by_default(self, config: Config) -> None:
        policy = config.load().approvals
        assert (policy.required_for, policy.window) == (frozenset(), 86400)
        assert policy.compromise_wait == 0

    def test_what_takes_two(self, config: Config) -> None:
        policy = config.load(
            BACKEND + "[approvals]\nrequired_for = ['destroy']\nwindow = 60\n"
            "same_person = [['cli:DOM\\\\olga', 'olga-laptop']]\n"
        ).approvals
        assert policy.requires(ProtectedAct.DESTROY)
        assert not policy.requires(ProtectedAct.UNDO_COMPROMISE)
        assert policy.compromise_wait == policy.window == 60
        assert len(policy.same_person) == 1

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("required_for = ['compromise']", "must be 'destroy' or 'undo-compromise'"),
            ("window = 59", "between 60 and 2592000"),
            ("same_person = [['olga']]", "same_person"),
            ("same_person = [['olga', 'Paul Two']]", "the name of a client"),
            ("same_person = [['olga', 'cli:']]", "the name of a client"),
            ("same_person = ['olga', 'paul']", "must be a list"),
        ],
    )
    def test_mistakes(self, config: Config, line: str, said: str) -> None:
        (problem, *_) = config.problems(f"{BACKEND}[approvals]\n{line}\n")
        assert "kmsjwks.toml:4: approvals." in problem
        assert said in problem

    def test_from_the_environment(self, config: Config) -> None:
        config.environ["KMSJWKS_APPROVALS__REQUIRED_FOR"] = '["undo-compromise"]'
        config.environ["KMSJWKS_APPROVALS__SAME_PERSON"] = '[["a", "b"]]'
        policy = config.load().approvals
        assert policy.required_for == {ProtectedAct.UNDO_COMPROMISE}
        assert policy.are_same("a", "b")


class TestWarnings:
    @pytest.mark.parametrize(
        "url",
        [
            "https://tokens.example.com/team",
            "http://localhost:1",
            "http://a.localhost",
            "http://127.0.0.9",
            "http://[::1]:80",
        ],
    )
    def test_none(self, config: Config, url: str) -> None:
        settings = config.load(BACKEND + f'[server]\nbase_url = "{url}"\n')
        assert (settings.server.base_url, settings.warnings) == (url, ())

    def test_plain_http(self, config: Config) -> None:
        settings = config.load(BACKEND + '[server]\nbase_url = "http://tokens.example.com"\n')
        (warning,) = settings.warnings
        assert warning.startswith("server.base_url is http://tokens.example.com: over plain http")

    def test_all_addresses_without_base_url(self, config: Config) -> None:
        (warning,) = config.load(BACKEND + '[server]\nhost = "0.0.0.0"\n').warnings
        assert warning.startswith("server.base_url is not set, so issuers become http://0.0.0.0:")

    def test_client_without_grants(self, config: Config) -> None:
        settings = config.load(BACKEND + client("a", HASH_A))
        assert settings.warnings == ("clients.a has no grants: it may do nothing.",)


class TestSecretsAreNotShown:
    SECRET = "Tr0ub4dor"

    def assert_hidden(self, problems: list[str]) -> None:
        assert problems
        assert self.SECRET not in "\n".join(problems)

    @pytest.mark.parametrize(
        "line",
        [
            'database.url = "mysql://u:{}@h"',
            'clients.a.token_sha256 = ["{}"]',
            'clients.a.token_sha256 = "{}"',
            'clients.a.token = "{}"',
            'backends = "pkcs11:token=a?pin-value={}"',
            'backends.x = "{}"',
            'server.base_url = "https://user:{}@host"',
            'server.base_url = "https://user:a/b{}@host"',
            'server.host = "pkcs11:token=a?pin-value={}"',
            'server.pin = "{}"',
            '{} "unclosed',
        ],
    )
    def test_in_the_file(self, config: Config, line: str) -> None:
        self.assert_hidden(config.problems(line.format(self.SECRET) + "\n"))

    @pytest.mark.parametrize(
        "name",
        [
            "DATABASE__URL",
            "DATABASE__ULR",
            "BACKENDS__X__PIN",
            "CLIENTS__A__TOKEN_SHA256",
            "CLIENTS__A__TOKEN",
        ],
    )
    def test_in_the_environment(self, config: Config, name: str) -> None:
        config.environ = {f"KMSJWKS_{name}": self.SECRET}
        self.assert_hidden(config.problems(""))

    @pytest.mark.parametrize("name", ["SERVER__PORT_FILE", "LOGGING__LEVEL_FILE"])
    def test_in_a_file_that_is_the_wrong_one(self, config: Config, name: str) -> None:
        config.environ = {f"KMSJWKS_{name}": config.secret("wrong", self.SECRET)}
        self.assert_hidden(config.problems())

    def test_not_in_the_cause_of_the_error(self, config: Config) -> None:
        with pytest.raises(ConfigurationError) as caught:
            config.load(f'database.url = "{self.SECRET}"\n')
        assert self.SECRET not in repr((caught.value.__cause__, caught.value.__context__))

    def test_not_in_repr(self, config: Config) -> None:
        settings = config.load(
            f'[database]\nurl = "sqlite:///{self.SECRET}.db"\n'
            + BACKEND
            + f'pin = "{self.SECRET}"\n'
            + client("a", HASH_A)
        )
        assert self.SECRET not in repr(settings)
        assert HASH_A not in repr(settings)


class TestLinesOfTheFile:
    TEXT = dedent(
        '''\
        # comment with [brackets] and "quotes
        top = """
        [not.a.table]
        key = 1 """""
        [server]          # trailing
        port = 1
        "quoted.key" = 'a # b'
        list = [
            "a]",  # [ "
            { x = 1 },
        ]
        after.the."lis\\u0074" = \'\'\'
        x = 1\'\'\'
        [[clients.demo.grants]]
        actions = []
        [[clients.demo.grants]]
        actions = []
        [clients.demo.grants.sub]
        x = 1'''
    )

    def test_scan(self) -> None:
        tomllib.loads(self.TEXT)
        lines = scan_lines(self.TEXT)
        assert lines == scan_lines(self.TEXT.replace("\n", "\r\n"))
        assert lines == {
            ("top",): 2,
            ("server",): 5,
            ("server", "port"): 6,
            ("server", "quoted.key"): 7,
            ("server", "list"): 8,
            ("server", "after"): 12,
            ("server", "after", "the"): 12,
            ("server", "after", "the", "list"): 12,
            ("clients",): 14,
            ("clients", "demo"): 14,
            ("clients", "demo", "grants"): 14,
            ("clients", "demo", "grants", 0): 14,
            ("clients", "demo", "grants", 0, "actions"): 15,
            ("clients", "demo", "grants", 1): 16,
            ("clients", "demo", "grants", 1, "actions"): 17,
            ("clients", "demo", "grants", 1, "sub"): 18,
            ("clients", "demo", "grants", 1, "sub", "x"): 19,
        }


class TestDocumentation:
    def test_every_setting_is_described_with_its_default(self, config: Config) -> None:
        text = DOCUMENTATION.read_text(encoding="utf-8")
        described = dict(re.findall(r"^\| `(\w+\.\w+)` \| [^|]* \| `([^|]*)` \|", text, re.M))
        defaults = config.load()
        assert set(described) == {".".join(setting) for setting in fixed_settings()}
        del described["server.base_url"]
        as_toml = "\n".join(f"{name} = {value}" for name, value in described.items())
        assert config.load(f"{as_toml}\n{BACKEND}") == defaults

    def test_the_complete_file_loads_and_states_the_defaults(self, config: Config) -> None:
        text = DOCUMENTATION.read_text(encoding="utf-8")
        example, *_ = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
        settings = config.load(example)
        assert settings.warnings == ()
        assert settings.server == config.load().server
        assert settings.clients[0].grants[0].keysets == ("demo", "team-*")
