"""Documents to an endpoint of somebody else's, one POST each."""

from __future__ import annotations

import urllib3
from urllib3.exceptions import HTTPError

from kmsjwks.domain.documents import Document
from kmsjwks.domain.errors import PublicationFailed

_TIMEOUT = urllib3.Timeout(connect=2, read=5)  # seconds
_THERE_ALREADY = 409
_SHOWN = 100  # characters of the URL in messages


class EndpointTarget:
    """POSTs a document with its name as ``Idempotency-Key``; any 2xx, or 409 for one that is there
    already, means that it was taken. Redirects are not followed, proxies of the environment not
    used."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: urllib3.PoolManager | None = None

    def __str__(self) -> str:
        return self._url.partition("?")[0][:_SHOWN]  # a query may hold a credential

    def publish(self, name: str, document: Document) -> bool:
        if self._pool is None:  # a process that forks must not share connections
            self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
        try:
            answer = self._pool.request(
                "POST",
                self._url,
                body=document.body,
                headers={"Content-Type": document.media_type, "Idempotency-Key": name},
                redirect=False,
            )
        except HTTPError as error:
            raise self._failed(type(error).__name__) from error
        if answer.status == _THERE_ALREADY:
            return False
        if not 200 <= answer.status < 300:
            raise self._failed(f"it answers {answer.status}")
        return True

    def _failed(self, why: str) -> PublicationFailed:
        return PublicationFailed(f"{self} did not take it: {why}.", retry_after=5)
