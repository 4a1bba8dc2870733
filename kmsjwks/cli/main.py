"""The `kmsjwks` command."""

from __future__ import annotations

from pathlib import Path

import click

from kmsjwks import __version__
from kmsjwks.cli.audit import audit
from kmsjwks.cli.backends import backends
from kmsjwks.cli.clients import clients
from kmsjwks.cli.configuration import config
from kmsjwks.cli.diagnosis import doctor
from kmsjwks.cli.evidence import evidence
from kmsjwks.cli.keyacts import COMMANDS, rotate
from kmsjwks.cli.keysets import keysets
from kmsjwks.cli.moves import COMMANDS as MOVES
from kmsjwks.cli.publication import jwks, keys
from kmsjwks.cli.serving import serve
from kmsjwks.cli.session import Session
from kmsjwks.cli.tokens import sign, verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file. Default: $KMSJWKS_CONFIG, ./kmsjwks.toml, /etc/kmsjwks/kmsjwks.toml.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How results are printed.",
)
@click.version_option(__version__, prog_name="kmsjwks")
@click.pass_context
def main(context: click.Context, config_path: Path | None, output: str) -> None:
    """HSM/KMS-backed JWT signing service: claims in, signed JWT out, JWKS for everyone.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 backend unreachable, 4 denied, 5 a check found something.
    """
    del output  # read by cli.output from the root context
    context.obj = Session(config_path)


for command in COMMANDS:
    keys.add_command(command)

for command in MOVES:
    keysets.add_command(command)

_TOP = (
    serve, doctor, config, backends, keysets, keys, rotate, jwks, sign, verify, clients, audit,
    evidence,
)  # fmt: skip
for command in _TOP:
    main.add_command(command)


if __name__ == "__main__":
    main()
