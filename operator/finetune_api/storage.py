"""Where a job's results are written, and how S3 is reached."""

import enum
from typing import Annotated

from pydantic import Field

from finetune_api import model


class Addressing(enum.StrEnum):
    PATH = "Path"
    VIRTUAL_HOST = "VirtualHost"


class Checksums(enum.StrEnum):
    WHEN_SUPPORTED = "WhenSupported"
    WHEN_REQUIRED = "WhenRequired"


class Encryption(enum.StrEnum):
    AES256 = "AES256"
    KMS = "KMS"
    KMS_DSSE = "KMSDSSE"


class CaBundle(model.Model):
    """A bundle of certificate authorities, in PEM, in a ConfigMap of the job's namespace."""

    config_map: model.Name = Field(description="The name of the ConfigMap.")
    key: Annotated[str, model.text(r"^[-._a-zA-Z0-9]+$", "must be a key of a ConfigMap, for example ca.crt", 253)] = (
        Field(default="ca.crt", description="The ConfigMap's key with the bundle. Default: ca.crt.")
    )


class Connection(model.Model):
    """How a store of the S3 API is reached, and with which credentials."""

    endpoint: (
        Annotated[
            str,
            model.text(
                r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$",
                "must be a URL with scheme, host and, where the store has them, port and path, without user and query, for "
                "example https://minio.example:9000",
                256,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="The URL of an S3-compatible store, for example https://minio.example:9000, with its base path where "
        "it has one. Absent: Amazon S3.",
    )
    region: Annotated[str, model.text(r"^[a-z0-9-]+$", "must be a region's name, for example eu-west-1", 64)] | None = (
        Field(default=None, description="The store's region, for example eu-west-1.")
    )
    credentials_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
        "where needed, AWS_SESSION_TOKEN. Absent: the pods' own identity (IRSA, workload identity).",
    )
    addressing: Addressing | None = Field(
        default=None,
        description="Where requests have the bucket: Path (https://host/bucket/key) or VirtualHost "
        "(https://bucket.host/key). Absent: Path with an endpoint, VirtualHost without.",
    )
    checksums: Checksums | None = Field(
        default=None,
        description="When requests have checksums of newer S3 clients: WhenSupported, for stores that want them (as "
        "buckets with object lock do), or WhenRequired, for stores that refuse them. Absent: WhenRequired with an endpoint, "
        "WhenSupported without.",
    )
    requester_pays: bool | None = Field(
        default=None,
        description="Whether requests state that their sender pays for them, as buckets with requester pays demand. "
        "Absent: false.",
    )


class Storage(Connection):
    """Where results are written, and how S3 is reached. Data are in the same store unless dataset.storage is set."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.kmsKeyId) || (has(self.encryption) && self.encryption != 'AES256')",
                "storage.kmsKeyId needs storage.encryption KMS or KMSDSSE: set it, or leave the key out",
            )
        )
    }
    output: str = Field(
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/([^\s?*#]([^?*#\t\r\n]*[^\s?*#])?)?)?|file:///\S(.*\S)?)$",
        max_length=512,
        description="The prefix of everything that the job writes, to <output>/<namespace>/<name>/<revision>/. It "
        "cannot be changed later.",
        json_schema_extra={
            "x-message": "must be s3://bucket/prefix or file:///folder, without wildcards and white space at its end; a bucket's "
            "name has 3 to 63 lower-case letters, digits, '-' and '.'"
        }
        | model.rules(
            ("self == oldSelf", "storage.output cannot be changed: create another FineTuneJob for another output"),
            ("!self.contains('/../') && !self.endsWith('/..')", "storage.output must not contain '..'"),
        ),
    )
    encryption: Encryption | None = Field(
        default=None,
        description="The server-side encryption that written objects request: AES256, KMS or KMSDSSE. Absent: the bucket's "
        "default. Reading needs no setting.",
    )
    kms_key_id: (
        Annotated[str, model.text(r"^\S+$", "must be a key's id, ARN or alias, without spaces", 2048)] | None
    ) = Field(default=None, description="The KMS key of encryption KMS or KMSDSSE. Absent: the account's default key.")
    ca_bundle: CaBundle | None = Field(
        default=None,
        description="Certificate authorities that all pods of the job trust besides the public ones: for stores, the hub and "
        "evaluation.judge. Absent: the chart's caBundle, if it has one.",
    )
    service_account_name: model.Name | None = Field(
        default=None,
        description="The ServiceAccount of the job's pods, for example one with a cloud identity. Absent: the "
        "namespace's `default` one. No container of the job gets its API token.",
    )
