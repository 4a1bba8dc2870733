"""What AWS KMS says of a key's custody."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from kmsjwks.backends.awskms.inventory import algorithm_of
from kmsjwks.backends.awskms.metadata import KeyMetadata
from kmsjwks.backends.awskms.naming import Label
from kmsjwks.domain.errors import BackendProtocolError, UnsupportedAlgorithm
from kmsjwks.domain.ports import Evidence

# AWS KMS Developer Guide, "Key stores" and DescribeKey, Origin.
_CUSTODY = {
    "AWS_KMS": "AWS KMS HSMs, FIPS 140-3 Security Level 3",
    "EXTERNAL": "AWS KMS HSMs; the key material was imported",
    "AWS_CLOUDHSM": "AWS CloudHSM key store",
    "EXTERNAL_KEY_STORE": "external key store outside AWS",
}
_CHINA = "AWS KMS HSMs of the China Regions, not validated under FIPS 140-3"
_NO_EXPORT = (
    "AWS KMS has no operation that returns the private key of a KMS key, so there was nothing to "
    "try"
)
# The domains of all partitions, IPv4 and dual-stack (botocore's partitions.json).
_AWS_DOMAINS = (
    "amazonaws.com",
    "api.aws",
    "amazonaws.com.cn",
    "api.amazonwebservices.com.cn",
    "amazonaws.eu",
    "api.amazonwebservices.eu",
    "c2s.ic.gov",
    "api.aws.ic.gov",
    "sc2s.sgov.gov",
    "api.aws.scloud",
    "cloud.adc-e.uk",
    "api.cloud-aws.adc-e.uk",
    "csp.hci.ic.gov",
    "api.aws.hci.ic.gov",
)
# Not every name in these domains is AWS's own service: machines and load balancers of customers
# have one too. A VPC endpoint's name begins with its id.
_AWS_KMS = re.compile(
    r"(?:kms|kms-fips|vpce-[a-z0-9-]+\.kms(?:-fips)?)\.[a-z0-9-]+\.(?:vpce\.)?(?:"
    + "|".join(re.escape(domain) for domain in _AWS_DOMAINS)
    + ")"
)


def evidence_of(ref: str, metadata: KeyMetadata, label: Label | None, endpoint: str) -> Evidence:
    """``endpoint`` is the URL that is really asked."""
    findings = tuple(_findings(metadata, label))
    origin = _text(metadata.said, "Origin")
    return Evidence(
        ref=ref,
        custody=_custody(metadata, origin, endpoint),
        attributes=_attributes(metadata),
        extraction_refused=origin in ("AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM"),
        findings=findings,
    )


def _custody(metadata: KeyMetadata, origin: str | None, endpoint: str) -> dict[str, str]:
    said = metadata.said
    device = _CUSTODY.get(origin or "", f"not known: Origin is {origin}")
    if origin == "AWS_KMS" and metadata.arn.partition == "aws-cn":
        device = _CHINA
    if not _is_of_aws(endpoint):
        device = f"whatever {endpoint} keeps keys in: it is no endpoint of AWS"
    custody = {
        "device": device,
        "endpoint": endpoint,
        "account": metadata.arn.account,
        "region": metadata.arn.region,
        "export": _NO_EXPORT,
    }
    for name in ("CustomKeyStoreId", "CloudHsmClusterId"):
        if said.get(name):
            custody[name] = str(said[name])
    if said.get("XksKeyConfiguration"):
        custody["XksKeyConfiguration"] = str(said["XksKeyConfiguration"].get("Id", ""))
    return custody


def _is_of_aws(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    # Anybody may answer without TLS.
    return parts.scheme == "https" and _AWS_KMS.fullmatch(parts.hostname or "") is not None


def _attributes(metadata: KeyMetadata) -> dict[str, bool | str | None]:
    said = metadata.said
    return {
        **{name: _text(said, name) for name in ("Origin", "KeyManager")},
        "KeySpec": metadata.spec,
        "KeyUsage": metadata.usage,
        "KeyState": metadata.state,
        "CreationDate": metadata.created.isoformat(timespec="seconds"),
        "MultiRegion": said.get("MultiRegion"),
        "PrimaryRegion": metadata.primary.region,
        "ReplicaRegions": ", ".join(replica.region for replica in metadata.replicas),
        "ExpirationModel": _text(said, "ExpirationModel"),
    }


def _text(said: Mapping[str, object], name: str) -> str | None:
    return str(said[name]) if said.get(name) else None


def _findings(metadata: KeyMetadata, label: Label | None) -> Iterator[str]:
    said = metadata.said
    origin, manager = _text(said, "Origin"), _text(said, "KeyManager")
    if origin == "EXTERNAL":
        yield "Origin is EXTERNAL: the key material was imported, so it existed outside AWS KMS"
    elif origin == "EXTERNAL_KEY_STORE":
        yield "Origin is EXTERNAL_KEY_STORE: AWS cannot say how the key is kept"
    elif origin not in _CUSTODY:
        yield f"Origin is {origin}, which says nothing of the key's custody"
    if manager != "CUSTOMER":
        yield f"KeyManager is {manager}; it must be CUSTOMER"
    if metadata.usage != "SIGN_VERIFY":
        yield f"KeyUsage is {metadata.usage}; it must be SIGN_VERIFY"
    if label is None:
        yield "the tags 'kmsjwks:...' of this installation are missing"
        return
    try:
        algorithm_of(metadata, label)
    except (BackendProtocolError, UnsupportedAlgorithm):
        yield f"KeySpec is {metadata.spec}, which is not that of {label.alg}, its tag"
