"""Client certificates as proxies write them into a header."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

from cryptography import x509

from kmsjwks.config.settings import CertificateSource

_MAX_LENGTH = 32 * 1024  # characters
_BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/]+={0,2}):")  # RFC 8941 section 3.3.5
_XFCC_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^";,]*)([;,]|$)')


class NoCertificate(ValueError):
    """With the reason, for the log."""


def read_certificate(source: CertificateSource, value: str) -> x509.Certificate:
    """
    Raises:
        NoCertificate: the header's value is not one certificate in the source's form.
    """
    if len(value) > _MAX_LENGTH:
        raise NoCertificate("it is too long.")
    try:
        return _READERS[source](value.strip())
    except NoCertificate:
        raise
    except (ValueError, binascii.Error) as error:
        raise NoCertificate("it is no certificate.") from error


def _rfc9440(value: str) -> x509.Certificate:
    """RFC 9440 section 2.2: the DER, as a byte sequence."""
    found = _BYTE_SEQUENCE.fullmatch(value)
    if found is None:
        raise NoCertificate("it is no byte sequence of RFC 8941.")
    return x509.load_der_x509_certificate(base64.b64decode(found[1], validate=True))


def _escaped_pem(value: str) -> x509.Certificate:
    """nginx's ``$ssl_client_escaped_cert``."""
    found = x509.load_pem_x509_certificates(unquote_to_bytes(value))
    if len(found) != 1:
        raise NoCertificate("it is not one certificate.")
    return found[0]


def _xfcc(value: str) -> x509.Certificate:
    """Envoy's ``X-Forwarded-Client-Cert``, of one element with ``Cert``."""
    members: dict[str, str] = {}
    for name, text in _xfcc_pairs(value):
        if name in members and name == "cert":
            raise NoCertificate("it has several certificates.")
        members[name] = text
    if "cert" not in members:
        raise NoCertificate("it has no Cert; let Envoy set it.")
    return _escaped_pem(members["cert"])


def _xfcc_pairs(value: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(value):
        found = _XFCC_PAIR.match(value, position)
        if found is None:
            raise NoCertificate("it is not in Envoy's form.")
        if found[3] == ",":
            raise NoCertificate("it has several elements; Envoy has to set it, not to append.")
        yield found[1].lower(), re.sub(r"\\(.)", r"\1", found[2].strip('"'))
        position = found.end()


_READERS: Mapping[CertificateSource, Callable[[str], x509.Certificate]] = MappingProxyType(
    {"rfc9440": _rfc9440, "nginx": _escaped_pem, "envoy": _xfcc}
)
