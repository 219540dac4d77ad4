"""A company's own certificate authority."""

import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def issue(folder: pathlib.Path, name: str = "127.0.0.1") -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    """Files of the authority's certificate, a certificate for an address or a host's name, and its key."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Company CA")])

    def certificate(
        subject: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: tuple[x509.ExtensionType, bool]
    ) -> bytes:
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(authority).public_key(public)
        made = (
            made.serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(1))
        )
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        return made.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    uses = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    files = {
        "ca.crt": certificate(
            authority,
            authority_key.public_key(),
            (x509.BasicConstraints(True, None), True),
            (uses, True),
            (identifier, False),
        ),
        "tls.crt": certificate(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            key.public_key(),
            (x509.SubjectAlternativeName([_subject(name)]), False),
            (above, False),
        ),
        "tls.key": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    ca, crt, private = (folder / file for file in files)
    return ca, crt, private


def _subject(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
