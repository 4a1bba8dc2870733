"""How long the failover proof lets things be down, and what it must not exceed. In seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum

from proof.plan import Plan, Times

DEMO, CLOUD, PLAIN = "demo", "cloud", "plain"
KEYSETS = (DEMO, CLOUD, PLAIN)
PRIMARY, STANDBY, TOKEN = "hsm", "kms", "token"
HOMES = {DEMO: PRIMARY, CLOUD: STANDBY, PLAIN: TOKEN}
REPLICAS = ("a", "b")
WORKERS = (3, 2)


class Break(Enum):
    """What the proof breaks on purpose, to show that it can fail: ``PROOF_BREAK``.

    ``unpublished``: clients get a key only seconds after its first token. ``withdrawn``: clients
    get no key any more that another one took over from. ``no-failover``: the standby takes over on
    command only, and nobody commands.
    """

    NOTHING = ""
    UNPUBLISHED = "unpublished"
    WITHDRAWN = "withdrawn"
    NO_FAILOVER = "no-failover"


def wanted_break() -> Break:
    return Break(os.environ.get("PROOF_BREAK", ""))


@dataclass(frozen=True, slots=True)
class FailoverPlan:
    """``noticing``: what a failover may take beyond ``failover_after``, and what a comeback may
    take beyond the downtime. ``keys_made``: of the keyset that fails over and moves."""

    failover_after: int = 6
    failback_after: int = 20
    watch_interval: float = 1.0
    primary_down: float = 16.0
    noticing: float = 4.0
    flaps: int = 4
    flap_down: float = 2.5
    flap_up: float = 3.0
    standby_cut_off: float = 16.0
    quiet_pause: float = 2.0
    demo_rate: float = 8.0
    other_rate: float = 2.0
    missed_share: float = 0.01
    keys_made: int = 8
    kills: int = 8
    slow_jwks: float = 0.5  # of 99 in 100 answers
    late_signing: int = 3  # notice: how long a deactivated key may sign on, unawares
    starting: float = 15.0  # how long a replica may not be ready after a kill
    broken: Break = Break.NOTHING
    times: Times = field(default_factory=Times)
    killing: Plan = field(default_factory=lambda: Plan(kill_gap=(7.0, 16.0)))


HIDDEN_FOR = 10.0  # seconds after a first token or, where ``Break.WITHDRAWN``, after the last
