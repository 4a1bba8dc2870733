"""Client certificates that a trusted proxy passes on, mapped to a configured client.

The server shows no certificate of its own TLS connections (design section 17), so TLS ends at the
proxy. From whom a header counts is decided by the connection alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509 import verification

from kmsjwks.config import MtlsSettings
from kmsjwks.config.identities import UNIX_SOCKET
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import ConfigurationError, Unauthenticated
from kmsjwks.domain.ports import Clock
from kmsjwks.domain.principals import Ambiguous, CertificateIdentity, CertificateName, owner
from kmsjwks.http.authentication.certificates import NoCertificate, read_certificate

_SHOWN = 200  # characters of a name in the log

_log = logging.getLogger(__name__)


class _Refused(Exception):
    """With the reason, for the log."""


class ClientCertificates:
    """Thread-safe."""

    def __init__(
        self,
        settings: MtlsSettings,
        identities: Sequence[tuple[CertificateIdentity, Principal]],
        clock: Clock,
    ) -> None:
        """
        Raises:
            ConfigurationError: ``client_ca`` cannot be read.
        """
        self._settings, self._clock = settings, clock
        self._variable = "HTTP_" + settings.header.upper().replace("-", "_")
        self._identities = tuple(identities)
        trusted = settings.trusted_proxies
        self._unix = UNIX_SOCKET in trusted
        self._networks = [ip_network(one) for one in trusted if one != UNIX_SOCKET]
        self._store = _store(settings.client_ca) if settings.client_ca is not None else None

    def authenticate(self, environ: Mapping[str, Any]) -> Principal | None:
        value = environ.get(self._variable, "")
        if not value:
            return None
        if not self._is_trusted(environ.get("REMOTE_ADDR", "")):
            _log.info("A client certificate in a header was dropped: its sender is no proxy.")
            return None
        try:
            return self._owner(self._certificate(value))
        except _Refused as reason:
            _log.warning("A client certificate was refused: %s", reason)
        raise Unauthenticated("The client certificate is not valid here.", presented=False)

    def _is_trusted(self, peer: str) -> bool:
        if not peer:  # only connections to the unix socket have no address
            return self._unix
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def _certificate(self, value: str) -> x509.Certificate:
        try:
            certificate = read_certificate(self._settings.source, value)
        except NoCertificate as error:
            raise _Refused(str(error)) from error
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise _Refused("it has expired, or is not valid yet.")
        if self._store is not None:
            _verify(certificate, self._store, now)
        return certificate

    def _owner(self, certificate: x509.Certificate) -> Principal:
        try:
            names = set(_names(certificate))
        except ValueError as error:
            raise _Refused("its names cannot be read.") from error
        shown = ", ".join(f"{one.kind.value} {one.value[:_SHOWN]!r}" for one in names)
        try:
            found = owner(client for one, client in self._identities if one in names)
        except Ambiguous as clients:
            raise _Refused(f"it is of several clients: {clients} ({shown}).") from None
        if found is None:
            raise _Refused(f"it is of no client ({shown}). Add it to a client's certificates.")
        return found


def _names(certificate: x509.Certificate) -> Iterator[CertificateIdentity]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        uris, hosts = [], []
    if len(uris) == 1:  # SPIFFE X.509-SVID section 2: exactly one
        yield CertificateIdentity(CertificateName.SPIFFE, uris[0])
    for host in hosts:
        yield CertificateIdentity(CertificateName.DNS, host.lower())
    if list(certificate.subject):
        yield CertificateIdentity(CertificateName.SUBJECT, certificate.subject.rfc4514_string())


def _store(path: Path) -> verification.Store:
    try:
        return verification.Store(x509.load_pem_x509_certificates(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError([f"mtls.client_ca: {path}: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigurationError(
            [f"mtls.client_ca: {path} holds no certificates in PEM"]
        ) from error


def _verify(certificate: x509.Certificate, store: verification.Store, now: datetime) -> None:
    """The proxy did so too; a mistake in its configuration alone must not let anybody in."""
    builder = verification.PolicyBuilder().store(store).time(now)
    ends = verification.ExtensionPolicy.webpki_defaults_ee().may_be_present(
        x509.SubjectAlternativeName, verification.Criticality.AGNOSTIC, None
    )
    builder = builder.extension_policies(
        ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=ends
    )
    try:
        builder.build_client_verifier().verify(certificate, [])
    except (verification.VerificationError, ValueError) as error:
        raise _Refused("it is not of an authority in client_ca.") from error
