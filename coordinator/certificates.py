"""X.509 as the cluster uses it: ECDSA P-256, one CA, leaves for coordinator and workers. No files, no clock."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = timedelta(days=3653)
CLOCK_LEEWAY = timedelta(hours=1)
"""Certificates begin so much earlier, for machines whose clocks are behind."""


def subject_names(hosts: Iterable[str]) -> tuple[x509.GeneralName, ...]:
    """Host names and addresses as subject alternative names; each once, wildcards of listening left out."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        name: x509.GeneralName
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if not host.isascii():
                continue  # no DNS name can be made of it; the fixed names still serve
            name = x509.DNSName(host)
        else:
            if address.is_unspecified:
                continue
            name = x509.IPAddress(address)
        if name not in names:
            names.append(name)
    return tuple(names)


def ca_certificate(key: ec.EllipticCurvePrivateKey, name: str, now: datetime) -> x509.Certificate:
    """The self-signed certificate of a cluster's CA, good for ten years."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Brigade cluster {name}")])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_LEEWAY)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def certificate_for(
    public_key: ec.EllipticCurvePublicKey,
    *,
    common_name: str,
    sans: Sequence[x509.GeneralName],
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    now: datetime,
    life: timedelta,
    is_client: bool,
) -> x509.Certificate:
    """A leaf of the CA `issuer` for TLS servers and, with `is_client`, for TLS clients too."""
    ca, ca_key = issuer
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if is_client else [])]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_LEEWAY)
        .not_valid_after(min(now + life, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
