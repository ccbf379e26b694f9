"""Keys that close the embedded store to everybody but its own parts: certificates and signing keys, new at each start.

SeaweedFS is a master, a volume server, a filer and an S3 server that talk to each other over loopback. Out of the box
each of them answers whoever asks. With these keys only S3 does, and that to signed requests only.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.private_files import open_private

GRPC_ROLES = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "CLIENT")
HTTP_ROLES = ("MASTER", "VOLUME", "FILER", "ADMIN", "CLIENT")
SIGNING_KEYS = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")
VALID_DAYS = 3650  # longer than any start of a store lives


def fresh_keys(folder: Path) -> dict[str, str]:
    """Write certificates into a folder, for its owner only, and return the environment that makes SeaweedFS use them.

    All parts share one certificate of an authority whose own key is forgotten here, so that there is never another.
    """
    authority_pem, certificate_pem, key_pem = _certificates()
    paths = {name: folder / f"{name}.pem" for name in ("authority", "certificate", "key")}
    for name, data in (("authority", authority_pem), ("certificate", certificate_pem), ("key", key_pem)):
        with open_private(paths[name], "wb") as file:
            file.write(data)
    authority, certificate, key = (str(paths[name]) for name in ("authority", "certificate", "key"))
    environment = {"WEED_GRPC_CA": authority, "WEED_HTTPS_CLIENT_ENABLED": "true"}
    for role in GRPC_ROLES:
        environment |= {f"WEED_GRPC_{role}_CERT": certificate, f"WEED_GRPC_{role}_KEY": key}
    for role in HTTP_ROLES:
        prefix = f"WEED_HTTPS_{role}"
        environment |= {f"{prefix}_CERT": certificate, f"{prefix}_KEY": key, f"{prefix}_CA": authority}
    return environment | {f"WEED_JWT_{name}_KEY": secrets.token_hex(32) for name in SIGNING_KEYS}


def _certificates() -> tuple[bytes, bytes, bytes]:
    """An authority's certificate, a certificate of it for loopback, and the key of the latter, as PEM."""
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)  # a clock may be set back
    end = begin + datetime.timedelta(days=VALID_DAYS)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("fluxsmith embedded store")

    def signed(subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(authority_name, subject, public_key, x509.random_serial_number(), begin, end)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    addresses = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    return (
        signed(authority_name, authority_key.public_key(), x509.BasicConstraints(ca=True, path_length=0)),
        signed(_name("store"), key.public_key(), x509.BasicConstraints(ca=False, path_length=None), usage, addresses),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
