"""How the tuned model is served."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api import arguments, model
from finetune_api.resources import ServerResources


class Rollout(model.Model):
    """How a new revision replaces the serving one."""

    strategy: Literal["BlueGreen", "Recreate"] = Field(
        default="BlueGreen",
        description="BlueGreen (the default): the new revision starts beside the serving one and replaces it once "
        "verified. Recreate: the serving one is stopped first, for clusters without a spare GPU, and is "
        "restored if the new one fails.",
    )


class Deployment(model.Model):
    """The server of the tuned model: vLLM with its OpenAI-compatible API."""

    enabled: bool = Field(
        default=True,
        description="Whether the model is served. Default: true; with false the job is complete after the evaluation.",
    )
    served_model_name: (
        Annotated[
            str,
            model.text(
                r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
                "must consist of letters, digits, '.', '_', '-' and '/', and start and end with a letter or digit",
                128,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="The name that clients send as `model`; in a namespace it belongs to one job. Absent: the job's name.",
    )
    replicas: int = Field(default=1, ge=1, le=1000, description="Number of server pods. Default: 1.")
    resources: ServerResources = Field(default_factory=ServerResources, description="What each server pod requests.")
    image: (
        Annotated[
            str,
            model.text(r"^[a-z0-9][^\s]*$", "must be an image reference, for example vllm/vllm-openai:v0.20.0", 512),
        ]
        | None
    ) = Field(
        default=None,
        description="The server's image; it must run vLLM's OpenAI server. Absent: the image from the operator's "
        "settings.",
    )
    extra_args: arguments.OfJobs = Field(
        default_factory=list,
        description="Further arguments of vLLM, for example --max-model-len=4096: context length, memory, "
        "precision, parallelism, scheduling, parsers of tools and reasoning, output. Only the platform team can "
        "set others, in the BaseModel or the chart.",
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How a new revision replaces the serving one.")
    api_key_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY clients must send as a bearer "
        "token. Absent: no token is required.",
    )
