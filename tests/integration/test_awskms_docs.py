"""docs/aws-kms.md and docs/iam: what they show is what the code generates, and it runs."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from click.testing import CliRunner

from kmsjwks.backends.awskms import permissions
from kmsjwks.backends.awskms.settings import parse_settings
from kmsjwks.cli.main import main
from kmsjwks.domain.ports import BackendContext
from tests.support.kms import FakeKms

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "aws-kms.md").read_text()
ONE = permissions.Scope("111122223333", ("eu-central-1",), "prod")
TWO = permissions.Scope("111122223333", ("eu-central-1", "eu-west-1"), "prod", multi_region=True)
POLICIES = {
    "signer": permissions.signer(ONE),
    "lifecycle-manager": permissions.manager(ONE),
    "lifecycle-manager-multi-region": permissions.manager(TWO),
    "break-glass": permissions.break_glass(ONE),
    "signer-multi-region": permissions.signer(TWO),
    "break-glass-multi-region": permissions.break_glass(TWO),
    "key-policy": permissions.key_policy(ONE),
    "service-control-policy": permissions.service_control_policy(
        ONE,
        manager_roles=["kmsjwks-manager", "kmsjwks-rotation"],
        break_glass_roles=["kmsjwks-break-glass"],
    ),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_files_are_what_the_code_generates(name: str) -> None:
    text = (ROOT / "docs" / "iam" / f"{name}.json").read_text()
    assert text == permissions.as_json(POLICIES[name]) + "\n"
    assert f"iam/{name}.json" in DOCUMENT


def test_there_is_no_other_policy_file() -> None:
    assert {path.stem for path in (ROOT / "docs" / "iam").iterdir()} == set(POLICIES)


def test_json_blocks_parse_and_the_key_policy_is_ours() -> None:
    parsed = [json.loads(block) for block in blocks("json")]
    assert POLICIES["key-policy"] in parsed
    assert len(parsed) == 3


def test_yaml_blocks_parse() -> None:
    yaml: Any = pytest.importorskip("yaml")
    kinds = [one["kind"] for block in blocks("yaml") for one in yaml.safe_load_all(block)]
    assert kinds == ["ServiceAccount", "Deployment"]


def test_every_toml_block_is_a_valid_backend(tmp_path: Path) -> None:
    context = BackendContext(base=tmp_path, state=tmp_path, environ={})
    for block in blocks("toml"):
        options = tomllib.loads(block)["backends"]["kms"]
        assert options.pop("type") == "awskms"
        assert parse_settings("kms", options, context).regions == ("eu-central-1",)


def test_every_action_named_exists() -> None:
    operations = set(botocore.session.get_session().get_service_model("kms").operation_names)
    named = set(re.findall(r"`kms:([A-Z]\w+)`|`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", DOCUMENT))
    conditions = {"KeyOrigin", "KeyUsage", "KeySpec", "MultiRegion", "SigningAlgorithm"}
    conditions |= {"MessageType", "ViaService", "RequestAlias", "ResourceAliases"}
    conditions |= {"BypassPolicyLockoutSafetyCheck", "MultiRegionKeyType", "DryRun"}
    conditions |= {"ScheduleKeyDeletionPendingWindowInDays", "IfExists", "AccessDenied"}
    conditions |= {"KeyId", "CustomerMasterKeySpec"}  # of answers
    spoken = {one for pair in named for one in pair if one} - conditions
    assert spoken <= operations
    assert {"CreateKey", "ScheduleKeyDeletion"} <= spoken


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target
    headings = {
        re.sub(r"[^a-z -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in DOCUMENT.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT)) <= headings


def test_the_development_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = [block for block in blocks("sh") if "tests.support.kms" in block]
    (config,) = [block for block in blocks("toml") if "endpoint=http" in block]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    path = tmp_path / "kmsjwks.toml"
    with FakeKms() as kms:
        path.write_text(config.replace("http://127.0.0.1:4599", kms.endpoint))
        for line in script.splitlines():
            words = shlex.split(line)
            if words[0] == "kmsjwks":
                words[words.index("kmsjwks.toml")] = str(path)
                result = CliRunner().invoke(main, words[1:], input="{}")
                assert result.exit_code == 0, result.output
        assert result.stdout.count(".") == 2
        assert len(kms.signs()) == 4  # doctor, the proofs of two new keys, the token
