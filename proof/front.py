"""What stands before the replicas for verifiers: a load balancer that asks the next replica when
one does not answer. One for each verifier, so that they meet different replicas."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

from tests.support.http import Answer, Http

Order = Callable[[], Sequence[int]]
"""The ports of the replicas, the first to be asked first."""

_PASSED_ON = ("Content-Type", "Cache-Control", "ETag")
_TIMEOUT = 2.0  # seconds


def fixed(ports: Sequence[int], first: int) -> Order:
    """Always the same replica, unless it is down."""
    order = (*ports[first:], *ports[:first])
    return lambda: order


def round_robin(ports: Sequence[int]) -> Order:
    turn = count()

    def order() -> Sequence[int]:
        first = next(turn) % len(ports)
        return (*ports[first:], *ports[:first])

    return order


@contextmanager
def front(order: Order, port: int = 0, edit: Callable[[bytes], bytes] = bytes) -> Iterator[str]:
    """Serve on loopback meanwhile; yields the URL. ``edit`` changes bodies on their way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = _ask(order(), self.path)
            self.send_response(answer.status if answer else 502)
            body = edit(answer.body) if answer else b""
            if answer:
                for name in _PASSED_ON:
                    self.send_header(name, answer.header(name))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Not to standard error."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _ask(ports: Sequence[int], path: str) -> Answer | None:
    for port in ports:
        http = Http(port, timeout=_TIMEOUT)
        try:
            answer = http.get(path)
        except OSError:
            continue
        finally:
            http.close()
        if answer.status < 500:
            return answer
    return None
