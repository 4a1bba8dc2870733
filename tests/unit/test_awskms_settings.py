"""Options of the AWS KMS backend: what they mean, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsjwks.backends.awskms.factory import KmsFactory
from kmsjwks.backends.awskms.settings import KmsSettings, parse_settings
from kmsjwks.backends.awskms.uri import UriError, parse_uri
from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.domain.ports import BackendContext

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUt"}


def parse(options: dict[str, object], environ: dict[str, str] | None = None) -> KmsSettings:
    context = BackendContext(Path("/etc/kmsjwks"), Path("/var/lib/kmsjwks"), environ or {})
    return parse_settings("cloud", options, context)


def problems(options: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        parse(options)
    return [problem.removeprefix("backends.cloud.") for problem in refused.value.problems]


def test_a_region_is_enough() -> None:
    settings = parse({"uri": "awskms:region=eu-central-1"})
    assert settings == KmsSettings("cloud", ("eu-central-1",))
    assert settings.requests_per_second < 1000
    assert (settings.deletion_window_days, settings.multi_region) == (30, False)


def test_the_uri_and_the_options_give_the_same() -> None:
    by_uri = parse({"uri": "awskms:region=eu-west-1;profile=sign;endpoint=http://kms:4566"})
    by_name = parse({"region": "eu-west-1", "profile": "sign", "endpoint": "http://kms:4566"})
    assert by_uri == by_name
    assert (by_uri.endpoint, by_uri.profile) == ("http://kms:4566", "sign")


def test_sts_is_asked_where_kms_is_unless_told_otherwise() -> None:
    assert parse({"uri": "awskms:region=r;endpoint=http://h:1"}).sts_endpoint == "http://h:1"
    told = parse({"uri": "awskms:region=r;endpoint=http://h:1", "sts_endpoint": "https://sts"})
    assert told.sts_endpoint == "https://sts"
    assert parse({"region": "r"}).sts_endpoint is None


def test_replicas_follow_home_in_their_order() -> None:
    settings = parse(
        {
            "region": "eu-central-1",
            "multi_region": True,
            "replica_regions": ["us-east-1", "eu-west-1"],
            "endpoint": "https://kms.{region}.example",
        }
    )
    assert settings.regions == ("eu-central-1", "us-east-1", "eu-west-1")


def test_numbers_may_be_text_as_the_environment_has_it() -> None:
    settings = parse(
        {"region": "r", "requests_per_second": "450", "read_timeout": "1.5", "multi_region": "true"}
    )
    assert (settings.requests_per_second, settings.read_timeout) == (450, 1.5)
    assert settings.multi_region


def test_every_mistake_is_told_at_once() -> None:
    said = problems(
        {
            "uri": "awskms:region=eu-central-1",
            "region": "eu-central-1",
            "replica_regions": ["us-east-1"],
            "account": "123",
            "installation": "a/b",
            "deletion_window_days": 6,
            "requests_per_second": 0,
            "read_timeout": 0,
            "endpoint": "kms.example",
            "colour": "blue",
        }
    )
    assert sorted(problem.split(":")[0] for problem in said) == [
        "account",
        "colour",
        "deletion_window_days",
        "endpoint",
        "installation",
        "read_timeout",
        "region",
        "replica_regions",
        "requests_per_second",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "region: missing"),
        ({"uri": "awskms:profile=p"}, "region: missing"),
        ({"uri": "pkcs11:token=t"}, "uri: must start with 'awskms:'"),
        ({"region": "EU Central"}, "region: "),
        ({"region": "r", "replica_regions": ["s"]}, "replica_regions: only multi-Region keys"),
        (
            {"region": "r", "multi_region": True, "replica_regions": ["r"]},
            "replica_regions: a Region appears twice",
        ),
        ({"region": "r", "installation": "x" * 65}, "installation: "),
        ({"region": "r", "deletion_window_days": 31}, "deletion_window_days: "),
        ({"region": "r", "endpoint": "ftp://host"}, "endpoint: "),
        ({"region": "r", "endpoint": "https://me:pw@host"}, "endpoint: "),
        ({"region": "r", "endpoint": "https://{zone}.host"}, "endpoint: "),
        ({"region": "r", "endpoint": "http://host:port"}, "endpoint: "),
        ({"region": "r", "sts_endpoint": "host"}, "sts_endpoint: "),
    ],
)
def test_a_mistake_is_told_once(options: dict[str, object], said: str) -> None:
    [problem] = problems(options)
    assert problem.startswith(said)
    assert "pw" not in problem


@pytest.mark.parametrize(
    "uri",
    [
        "region=eu-west-1",
        "awskms:eu-west-1",
        "awskms:region=",
        "awskms:region=a;region=b",
        "awskms:region=a;secret=hunter2",
        "awskms:region=a%",
        "awskms:region=%ff",
    ],
)
def test_a_broken_uri_is_refused_without_quoting_values(uri: str) -> None:
    with pytest.raises(UriError) as refused:
        parse_uri(uri)
    assert "hunter2" not in str(refused.value)


def test_a_uri_is_percent_decoded() -> None:
    assert parse_uri("AWSKMS:region=a;profile=x%3By;") == {"region": "a", "profile": "x;y"}


def test_access_keys_of_the_environment_are_kept_and_never_shown() -> None:
    settings = parse({"region": "r"}, {**KEYS, "AWS_SESSION_TOKEN": "FwoGZXIv"})
    credentials = settings.credentials
    assert credentials is not None
    assert credentials.access_key_id == "AKIDEXAMPLE"
    assert credentials.secret_access_key == "wJalrXUt"
    assert credentials.session_token == "FwoGZXIv"
    for shown in (repr(settings), repr(credentials), str(settings)):
        assert not any(secret in shown for secret in ("AKID", "wJalr", "FwoG"))


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({"region": "r", "profile": "p"}, KEYS),
        ({"region": "r"}, {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE"}),
        ({"region": "r"}, {"AWS_ROLE_ARN": "arn:aws:iam::111122223333:role/signer"}),
    ],
)
def test_everything_else_is_left_to_boto3(
    options: dict[str, object], environ: dict[str, str]
) -> None:
    assert parse(options, environ).credentials is None


def test_opening_asks_nobody() -> None:
    backend = KmsFactory().open(parse({"region": "r", "endpoint": "http://127.0.0.1:1"}), None)
    assert backend.status().available
    backend.close()


def test_the_factory_parses_without_boto3s_help_and_says_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = BackendContext(Path("/"), Path("/"), {})
    assert KmsFactory().parse("cloud", {"region": "r"}, context).regions == ("r",)
    monkeypatch.setattr("kmsjwks.backends.awskms.factory.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"kmsjwks\[aws\]"):
        KmsFactory().parse("cloud", {"region": "r"}, context)
