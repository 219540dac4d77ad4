"""Certificate authorities: those that this machine trusts, and those of a company's own bundle, in one file for every client.

Each client has a variable of its own for it (OpenSSL and httpx, boto3, requests), and each takes the file instead of its default.
"""

import os
import pathlib
import ssl
import tempfile

from finetune_api import reasons
from finetune_trainer.process import errors

BUNDLE = "FINETUNE_CA_BUNDLE"
"""The file with further authorities, in PEM."""

VARIABLES = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


def install() -> None:
    """Makes all clients of this process and its children trust the authorities of BUNDLE, too.

    Raises Failure for a file that is missing or has no certificate. In a cluster the kubelet has mounted it.
    """
    given = os.environ.get(BUNDLE)
    if given is None:
        return
    try:
        own = pathlib.Path(given).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"no bundle of certificate authorities is at {given} ({error.strerror}): {BUNDLE} must name a file in PEM.",
        ) from None
    try:
        ssl.create_default_context(cadata=own or " ")
    except ssl.SSLError as error:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"the bundle of certificate authorities at {given} has no certificate that can be read "
            f"({error.reason or error}). The ConfigMap's key (storage.caBundle, or the chart's caBundle) must have "
            "certificates in PEM.",
        ) from None
    with tempfile.NamedTemporaryFile("w", prefix="ca-", suffix=".pem", delete=False) as whole:
        whole.write("\n".join([*trusted(), own]))
    for name in VARIABLES:
        os.environ[name] = whole.name


def trusted() -> list[str]:
    """The contents of the bundles that clients use without a setting: the system's and certifi's."""
    import certifi

    places = [os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile, certifi.where()]
    return [
        pathlib.Path(place).read_text(encoding="utf-8") for place in places if place and pathlib.Path(place).is_file()
    ]
