"""The base of every type of the contract: camelCase on the wire, snake_case in Python, unknown fields refused."""

from typing import Annotated, Any

import pydantic
from pydantic.alias_generators import to_camel


class Model(pydantic.BaseModel):
    """A value of the API: immutable, written with its camelCase names."""

    model_config = pydantic.ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_enum_values=False
    )

    def wire(self, **options: Any) -> dict[str, Any]:
        """This value as JSON-ready data with camelCase names; fields that are None are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, **options)


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules of a schema node, as pairs of (rule, message); the API server applies them at admission."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def text(pattern: str, message: str, max_length: int) -> Any:
    """A string of this pattern. A string that does not match is refused with the message, which is easier to read than the
    pattern."""
    return pydantic.Field(pattern=pattern, max_length=max_length, json_schema_extra={"x-message": message})


Name = Annotated[
    str,
    text(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        "must be the name of a Kubernetes object: lower-case letters, digits, '-' and '.', starting and ending with "
        "a letter or digit",
        253,
    ),
]
