"""What an error of an S3 client means: the reason and the words of a Failure.

Only what time can mend is STORAGE_UNAVAILABLE, which `s3` retries: no connection, no answer, a server's own error. What the
store answered, and what this process could not even send, is said at once.
"""

import http.client
import re
import ssl

import botocore.exceptions

from finetune_api import reasons
from finetune_trainer.process import errors

DENIED = {
    "403", "401", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "TokenRefreshRequired", "XAdminUserNotFound", "XAdminNoSuchUser", "AllAccessDisabled", "AccountProblem", "UnauthorizedAccess",
    "RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "PermanentRedirect", "301", "InvalidClientTokenId",
}  # fmt: skip
"""Error codes that a retry with the same credentials, clock and region would not change."""

FORBIDDEN = {"403", "AccessDenied", "Forbidden"}
"""Codes of DENIED that say nothing of the credentials themselves, but that they lack a right."""

WORDLESS = {"400", "403", "404"}
"""What a HEAD, whose answer has no body, leaves of a code."""

MISSING = {"404", "NoSuchKey", "NotFound"}

TRANSIENT = {
    "RequestTimeout",
    "SlowDown",
    "OperationAborted",
    "ThrottlingException",
    "TooManyRequests",
    "InternalError",
}
"""Error codes that pass, whatever their status is."""

CHANGED = {"412", "PreconditionFailed"}

ARCHIVED = "InvalidObjectState"

UNTRUSTED = (
    "unable to get local issuer",
    "unable to get issuer",
    "self-signed",
    "self signed",
    "Hostname mismatch",
    "doesn't match",
)
"""Parts of OpenSSL's words for a certificate that this process will never accept; an expired one is renewed some day."""


def failure(
    uri: str, endpoint: str | None, error: Exception, waited: float, *, right: str = "", listable: bool = True
) -> errors.Failure:
    """The failure that an error of a request for `uri` is, after `waited` seconds of retries.

    right: the right that the request needs, such as s3:GetObject; listable: whether the key may list the bucket, without which
    stores refuse to say that an object is missing.
    """
    where = f"{uri} at {endpoint or 'Amazon S3'}"
    if isinstance(error, errors.Failure):
        return error
    if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
        return errors.Failure(
            reasons.Reason.S3_ACCESS_DENIED,
            f"{where}: no credentials were found. Set credentialsSecret to a Secret with AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the job's ServiceAccount a cloud identity.",
        )
    if code_of(error) or status_of(error):
        return _answered(where, uri, error, waited, right, listable)
    if untrusted(error):
        return errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"{where}: its certificate is not accepted ({errors.describe(error)}). Name the bundle of the authority that signed "
            "it in storage.caBundle (or the chart's caBundle), or correct the host in storage.endpoint.",
        )
    if unsent(error):
        return errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"{where}: the request could not be sent ({errors.describe(error)}). Check the values in credentialsSecret, and "
            "storage.endpoint and storage.region, for characters that do not belong there.",
        )
    return _unavailable(where, error, waited)


def _answered(where: str, uri: str, error: Exception, waited: float, right: str, listable: bool) -> errors.Failure:
    """The store answered, with a status or a code."""
    code, status = code_of(error), status_of(error)
    quoted = errors.describe(error)
    if code == "NoSuchBucket":
        bucket = uri.removeprefix("s3://").partition("/")[0]
        return errors.Failure(
            reasons.Reason.BUCKET_NOT_FOUND,
            f"{where}: the bucket {bucket!r} does not exist. Create it, or correct the name or storage.endpoint.",
        )
    if code in MISSING:
        return errors.NotFound(uri)
    if code == ARCHIVED:
        return errors.Failure(
            reasons.Reason.DATASET_INVALID, f"{where}: the object is archived ({quoted}). Restore it, then run again."
        )
    if re.search(r"object.?lock|WORM", quoted, re.IGNORECASE):
        return errors.Failure(
            reasons.Reason.S3_ACCESS_DENIED,
            f"{where}: refused with {quoted}. A retention keeps this object as it is: for storage.output, choose a bucket "
            "without a default retention, or one with versioning.",
        )
    if code in FORBIDDEN and right:
        absent = (
            "" if listable else " Or it does not exist: without s3:ListBucket the store gives the same answer to both."
        )
        return errors.Failure(
            reasons.Reason.S3_ACCESS_DENIED,
            f"{where}: refused with {quoted}. The key of credentialsSecret, or the pods' identity, needs {right} there.{absent} "
            "docs/guides/storage.md lists all rights.",
        )
    if code in DENIED:
        return errors.Failure(
            reasons.Reason.S3_ACCESS_DENIED,
            f"{where}: refused with {quoted}. Check the access key and secret in credentialsSecret, their rights "
            "(docs/guides/storage.md lists them), and storage.region.",
        )
    if code in CHANGED:
        return errors.Failure(
            reasons.Reason.DATASET_INVALID, f"{uri} was changed while it was read. Run again when it is complete."
        )
    if code not in TRANSIENT and ((400 <= status < 500 and status not in (408, 425, 429)) or status == 501):
        return errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"{where}: refused with {quoted}. The store does not accept this request, whenever it is repeated: see "
            "docs/guides/storage.md for the settings of spec.storage that stores differ in.",
        )
    return _unavailable(where, error, waited)


def _unavailable(where: str, error: Exception, waited: float) -> errors.Failure:
    return errors.Failure(
        reasons.Reason.STORAGE_UNAVAILABLE,
        f"{where}: no answer for {waited:.0f} s ({errors.describe(error)}). Check storage.endpoint and "
        "that the store runs and is reachable from the cluster's pods.",
    )


def untrusted(error: BaseException) -> bool:
    """Whether the store's certificate is one that will not be accepted later either."""
    return any(
        isinstance(one, ssl.SSLCertVerificationError) and any(words in str(one) for words in UNTRUSTED)
        for one in chain(error)
    ) or (isinstance(error, botocore.exceptions.SSLError) and any(words in str(error) for words in UNTRUSTED))


def unsent(error: BaseException) -> bool:
    """Whether the client refused its own request, so that nothing was sent."""
    if type(error) is botocore.exceptions.HTTPClientError:  # exactly: its subclasses are of connections that broke
        # what http.client says of a header, a host or a path that cannot be sent; UnicodeError is a ValueError
        return isinstance(error.__cause__ or error.__context__, (ValueError, http.client.InvalidURL))
    refused = (
        botocore.exceptions.ParamValidationError,
        botocore.exceptions.EndpointResolutionError,
        botocore.exceptions.InvalidEndpointConfigurationError,
        botocore.exceptions.UnsupportedS3ConfigurationError,
        ValueError,
    )
    return isinstance(error, refused)


def chain(error: BaseException | None) -> list[BaseException]:
    """An error and its causes."""
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def code_of(error: BaseException) -> str:
    """The store's error code, found through the wrappers of boto3's transfers."""
    for one in chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    found = re.search(r"An error occurred \((\w+)\)", str(error))  # S3UploadFailedError carries its cause as text alone
    return found.group(1) if found else ""


def status_of(error: BaseException) -> int:
    """The HTTP status of the store's answer; 0 without one."""
    for one in chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 0
