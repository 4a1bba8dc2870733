"""The proof that keysets outlive their backend: `make failover-proof`.

Two replicas share a PostgreSQL database. The keyset `demo` signs in SoftHSM behind `p11-kit
server` and has AWS KMS (moto over HTTP) as its standby; two other keysets sign in KMS alone and in
a second token. Callers sign without a pause, clients with their default caches verify every token
at once and again shortly before its exp. The primary is killed, comes back, comes and goes; the
standby is cut off; the keyset is migrated, turned round, migrated for good, and its old backend
removed, while replicas and workers are killed at random. No unexpired token may be refused.

Its own ability to fail is shown by breaking a rule: `PROOF_BREAK=unpublished`, `withdrawn` or
`no-failover` (`proof.failover_plan.Break`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import FrameType

from proof.caller import Caller, connections
from proof.failover_cluster import Custody, FailoverCluster, Primary, provide_credentials
from proof.failover_judge import FailoverCase, judge
from proof.failover_plan import (
    DEMO,
    HIDDEN_FOR,
    KEYSETS,
    REPLICAS,
    Break,
    FailoverPlan,
    wanted_break,
)
from proof.failover_record import Story
from proof.failover_report import report
from proof.failover_scenario import Scenario, say
from proof.failover_watch import Watcher
from proof.front import fixed, front, round_robin
from proof.killer import Killer
from proof.lane import Lane
from proof.record import Record, Token
from proof.rotation import OUT, postgres
from proof.verifiers import Joserfc, NodeJose, PyJwt, Verifier
from tests.support.audit import verified_events
from tests.support.moto import CorrectedMoto
from tests.support.service import free_port
from tests.support.softhsm import provision

Edit = Callable[[bytes], bytes]


def jwks_for_clients(broken: Break, record: Record, first: frozenset[str]) -> Edit:
    """What the load balancers before the clients make of the JWKS: nothing, unless it is to be
    broken. ``first``: the keys that sign at the beginning."""

    def is_late(kid: str) -> bool:
        signed = record.signed.get(kid)
        return kid not in first and (signed is None or time.time() < signed.first + HIDDEN_FOR)

    def is_over(kid: str) -> bool:
        signed = record.signed.get(kid)
        newest = max((one.last for one in list(record.signed.values())), default=0.0)
        return signed is not None and signed.last < newest - HIDDEN_FOR

    hidden = {Break.UNPUBLISHED: is_late, Break.WITHDRAWN: is_over}.get(broken)

    def edit(body: bytes) -> bytes:
        keys = json.loads(body)["keys"]
        shown = [key for key in keys if hidden is None or not hidden(key["kid"])]
        return json.dumps({"keys": shown}).encode()

    return bytes if hidden is None else edit


def verifiers(stack: ExitStack, cluster: FailoverCluster, edit: Edit) -> list[Verifier]:
    """Each behind a load balancer of its own, so that they meet different replicas."""
    ports, issuer = list(cluster.ports.values()), cluster.issuer

    def url(order: int | None) -> str:
        ways = round_robin(ports) if order is None else fixed(ports, order)
        return stack.enter_context(front(ways, edit=edit))

    made: list[Verifier] = [
        PyJwt("PyJWT", url(0), issuer),
        NodeJose("jose", url(1), issuer),
        Joserfc("joserfc", url(0), issuer, cluster.plan.times.max_age),
        Joserfc("joserfc-cold", url(None), issuer, 0),
    ]
    for one in made:
        stack.callback(one.close)
    return made


class Callers:
    """One for each keyset; every token goes to every client."""

    def __init__(self, cluster: FailoverCluster, record: Record, story: Story) -> None:
        self._cluster, self._record, self._story = cluster, record, story
        self._lanes: list[Lane] = []
        self._callers = [self._caller(keyset) for keyset in KEYSETS]

    def start(self, clients: Sequence[Verifier]) -> None:
        self._lanes = [Lane(client, self._record) for client in clients]
        for caller in self._callers:
            caller.start()

    def stop(self, patience: float) -> None:
        """Wait ``patience`` seconds at most for the last looks at tokens."""
        for caller in self._callers:
            caller.stop()
        say("waiting for the last tokens to expire")
        for lane in self._lanes:
            assert lane.finish(patience), f"{lane.name} hangs"

    def _caller(self, keyset: str) -> Caller:
        plan = self._cluster.plan

        def deliver(token: Token) -> None:
            self._story.release(keyset, token)
            for lane in self._lanes:
                lane.put(token)

        connected = connections(self._cluster.ports, self._cluster.bearer)
        rate = plan.demo_rate if keyset == DEMO else plan.other_rate
        return Caller(connected, rate, self._record, deliver, keyset)


def run(stack: ExitStack, plan: FailoverPlan, seed: int) -> FailoverCase:
    directory = Path(tempfile.mkdtemp(prefix="kmsjwks-failover-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    custody = _custody(stack, directory)
    database = stack.enter_context(postgres())
    # The issuer's URL, where nobody listens: each verifier has its own way to the replicas.
    issuer = f"http://127.0.0.1:{free_port()}"
    cluster = FailoverCluster(directory, database, custody, issuer, plan)
    stack.enter_context(closing(cluster))
    stack.callback(_keep_logs, cluster)
    say("starting two replicas")
    cluster.start()
    record, story = Record(time.time()), Story()
    first = frozenset(key.kid for key in cluster.key_facts() if key.state == "active")
    clients = verifiers(stack, cluster, jwks_for_clients(plan.broken, record, first))
    callers, watcher = Callers(cluster, record, story), Watcher(cluster, record, story)
    killer = Killer(cluster, plan.killing, record, seed)
    callers.start(clients)
    watcher.start()
    killer.start()
    Scenario(cluster, custody, plan, record, story).play()
    killer.stop()
    callers.stop(plan.times.lifetime + 15)
    watcher.stop()
    record.closed = time.time()
    keys, events = cluster.key_facts(), cluster.events()
    cluster.close()
    audit = [
        event
        for place in cluster.audit_directories()
        for event in verified_events(place)
        if event["event"] == "jwt.signed"
    ]
    return FailoverCase(plan, record, story, keys, events, [one.name for one in clients], audit)


def _custody(stack: ExitStack, directory: Path) -> Custody:
    provide_credentials()
    standby = CorrectedMoto()
    stack.callback(standby.stop)
    primary = Primary(provision(directory / "primary-token"), directory)
    primary.start()
    stack.callback(primary.kill)
    return Custody(primary, standby, provision(directory / "plain-token"))


def _keep_logs(cluster: FailoverCluster) -> None:
    for name, server in cluster.servers.items():
        with suppress(FileNotFoundError):
            shutil.copyfile(server.log, OUT / f"failover-replica-{name}.log")


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the kills")
    options = parser.parse_args()
    broken = wanted_break()
    signal.signal(signal.SIGTERM, _end)  # so that nothing is left running
    OUT.mkdir(exist_ok=True)
    say(f"about 5 minutes; --seed {options.seed}, replicas {', '.join(REPLICAS)}")
    if broken is not Break.NOTHING:
        say(f"PROOF_BREAK={broken.value}: this run is to fail")
    with ExitStack() as stack:
        case = run(stack, FailoverPlan(broken=broken), options.seed)
    found = judge(case)
    report(case, found, OUT / "failover.txt")
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
