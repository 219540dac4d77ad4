"""Where a job's results are written, and how S3 is reached."""

from typing import Annotated

from pydantic import Field

from finetune_api import model


class Storage(model.Model):
    """Where results are written, and how S3 is reached; data and results use the same store."""

    output: str = Field(
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/([^\s?*#]([^?*#\t\r\n]*[^\s?*#])?)?)?|file:///\S(.*\S)?)$",
        max_length=512,
        description="The prefix of everything that the job writes, to <output>/<namespace>/<name>/<revision>/. It "
        "cannot be changed later.",
        json_schema_extra={
            "x-message": "must be s3://bucket/prefix or file:///folder, without wildcards and white space at its end"
        }
        | model.rules(
            ("self == oldSelf", "storage.output cannot be changed: create another FineTuneJob for another output"),
            ("!self.contains('/../') && !self.endsWith('/..')", "storage.output must not contain '..'"),
        ),
    )
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
    service_account_name: model.Name | None = Field(
        default=None,
        description="The ServiceAccount of the job's pods, for example one with a cloud identity. Absent: the "
        "namespace's `default` one. No container of the job gets its API token.",
    )
