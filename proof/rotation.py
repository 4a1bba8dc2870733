"""The proof that keys rotate without a verifier ever losing: `make rotation-proof`.

Three replicas share one PostgreSQL database and one SoftHSM token. A caller signs without a pause,
clients with their default caches verify every token at once and again shortly before its exp,
while keys rotate, one is compromised, and replicas and workers are killed at random. Only what the
compromised key signed may be refused, and only once the operator's command has begun.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType

from proof.caller import Caller, connections
from proof.front import fixed, front, round_robin
from proof.judge import Case, Verdict, judge
from proof.killer import Killer
from proof.lane import Lane
from proof.plan import Plan, Times
from proof.record import Record, Token
from proof.replicas import Cluster
from proof.table import failures, kills, table, verdicts
from proof.timeline import timeline
from proof.verifiers import Joserfc, NodeJose, PyJwt, Verifier
from tests.support.postgres import PostgresServer
from tests.support.service import free_port
from tests.support.softhsm import provision

OUT = Path(__file__).with_name("out")
_LOOK_INTERVAL = 0.5  # seconds between looks at the replicas' JWKS
_PROGRESS_INTERVAL = 30.0


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


def verifiers(stack: ExitStack, ports: Sequence[int], issuer: str, max_age: int) -> list[Verifier]:
    """Each behind a load balancer of its own, so that they meet different replicas."""

    def url(order: int | None) -> str:
        ways = round_robin(ports) if order is None else fixed(ports, order)
        return stack.enter_context(front(ways))

    made: list[Verifier] = [
        PyJwt("PyJWT", url(0), issuer),
        NodeJose("jose", url(1), issuer),
        Joserfc("joserfc", url(2), issuer, max_age),
        Joserfc("joserfc-cold", url(None), issuer, 0),
    ]
    for one in made:
        stack.callback(one.close)
    return made


class Operator:
    """Looks at the replicas' JWKS, and compromises a key when its time has come."""

    def __init__(self, cluster: Cluster, plan: Plan, record: Record) -> None:
        self._cluster, self._plan, self._record = cluster, plan, record

    def watch(self, caller: Caller) -> None:
        until, progress = self._record.began + self._plan.seconds, 0.0
        while (now := time.time()) < until:
            assert caller.is_alive(), "the caller ended"
            self._see()
            if self._record.compromise is None:
                self._compromise_if_due(now)
            if now - self._record.began >= progress:
                self._say(now)
                progress += _PROGRESS_INTERVAL
            time.sleep(_LOOK_INTERVAL)

    def _see(self) -> None:
        for name in self._cluster.servers:
            try:
                kids = self._cluster.jwks_kids(name)
            except OSError:
                continue  # it was killed
            self._record.see(kids, time.time())

    def _compromise_if_due(self, now: float) -> None:
        begun = [
            key for key in self._cluster.key_facts() if key.activate_at and key.activate_at <= now
        ]
        if len(begun) != self._plan.compromised_key:
            return
        active = max(begun, key=lambda key: key.activate_at or 0)
        if now < (active.activate_at or 0) + self._plan.compromise_after:
            return
        _say(f"compromising {active.kid[:8]}")
        self._record.begin_compromise(active.kid, time.time())
        self._cluster.operate("keys", "compromise", active.kid, "--yes")
        self._record.end_compromise(time.time())

    def _say(self, now: float) -> None:
        record = self._record
        _say(
            f"{now - record.began:3.0f} s: "
            f"{sum(one.count for one in list(record.signed.values()))} tokens with "
            f"{len(record.signed)} keys, {len(record.kills)} kills, "
            f"{len(record.refusals)} refusals, longest pause {record.longest_pause:.2f} s"
        )


def run(stack: ExitStack, plan: Plan, times: Times, seed: int) -> Case:
    directory = Path(tempfile.mkdtemp(prefix="kmsjwks-proof-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    # The issuer's URL, where nobody listens: each verifier has its own way to the replicas.
    issuer = f"http://127.0.0.1:{free_port()}"
    server = stack.enter_context(postgres())
    cluster = Cluster(directory, server, provision(directory / "token"), issuer, times)
    stack.enter_context(closing(cluster))
    stack.callback(_keep_logs, cluster)
    _say("starting three replicas")
    cluster.start()
    clients = verifiers(stack, list(cluster.ports.values()), issuer, times.max_age)
    record = Record(time.time())
    lanes = [Lane(client, record) for client in clients]

    def deliver(token: Token) -> None:
        for lane in lanes:
            lane.put(token)

    connected = connections(cluster.ports, cluster.bearer)
    caller = Caller(connected, plan.tokens_per_second, record, deliver)
    killer = Killer(cluster, plan, record, seed)
    caller.start()
    killer.start()
    Operator(cluster, plan, record).watch(caller)
    caller.stop()
    killer.stop()
    _say("waiting for the last tokens to expire")
    for lane in lanes:
        assert lane.finish(times.lifetime + 15), f"{lane.name} hangs"
    record.closed = time.time()
    names, keys = [one.name for one in clients], cluster.key_facts()
    cluster.close()
    return Case(plan, times, record, keys, names, cluster.refs_in_token())


def _keep_logs(cluster: Cluster) -> None:
    for name, server in cluster.servers.items():
        if server.log.exists():
            shutil.copyfile(server.log, OUT / f"replica-{name}.log")


def report(case: Case, found: Sequence[Verdict]) -> None:
    passed = all(one.holds for one in found)
    record = case.record
    outcome = (
        f"{'PASSED' if passed else 'FAILED'}: {sum(one.count for one in record.signed.values())} "
        f"tokens, {sum(record.accepted.values())} acceptances, {len(record.refusals)} refusals, "
        f"{len(record.kills)} kills, longest pause {record.longest_pause:.2f} s"
    )
    picture = OUT / "rotation.svg"
    picture.write_text(timeline(case, outcome))
    print(f"\n{table(case)}\n")
    print("moments: since signing began; clients: accepted at once + before exp, - refusals of the")
    print("compromised key's tokens after the compromise (clients with a cache go on accepting)\n")
    print(f"{kills(case)}\n\n{failures(case.record)}\n\n{verdicts(found)}\n\n{outcome}")
    print(f"picture: proof/out/{picture.name}")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=Plan().seconds, help="of signing")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the kills")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)  # so that nothing is left running
    OUT.mkdir(exist_ok=True)
    _say(f"about {options.seconds / 60 + 0.7:.0f} minutes; --seed {options.seed}")
    with ExitStack() as stack:
        case = run(stack, Plan(seconds=options.seconds), Times(), options.seed)
    found = judge(case)
    report(case, found)
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
