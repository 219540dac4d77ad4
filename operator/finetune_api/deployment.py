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


_POOLED = "!has(self.pool) || self.pool == 'Dedicated' || "


def _of_the_pool(field: str, unset: str, instead: str) -> tuple[str, str]:
    """The rule that a field of a dedicated server is not set together with a pool."""
    return (
        f"{_POOLED}{unset}",
        f"deployment.{field} has no effect with deployment.pool: {instead}, or set pool to Dedicated",
    )


_HERE = "remove it; the ServingPool has this field for all its jobs"


class Deployment(model.Model):
    """The server of the tuned model: vLLM with its OpenAI-compatible API."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            _of_the_pool("replicas", "self.replicas == 1", _HERE),
            _of_the_pool("resources", "!has(self.resources)", _HERE),
            _of_the_pool("image", "!has(self.image)", _HERE),
            _of_the_pool("extraArgs", "!has(self.extraArgs) || self.extraArgs.size() == 0", _HERE),
            _of_the_pool(
                "apiKeySecret",
                "!has(self.apiKeySecret)",
                "remove it; the clients' keys are in the ServingPool's keysSecret",
            ),
            _of_the_pool(
                "rollout.strategy",
                "!has(self.rollout) || !has(self.rollout.strategy) || self.rollout.strategy == 'BlueGreen'",
                "remove it; a pool holds both revisions on the same GPU",
            ),
        )
    }

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
    pool: (
        Annotated[
            str,
            model.text(
                r"^(Dedicated|([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z]([-a-z0-9]*[a-z0-9])?)$",
                "must be the name of a ServingPool, NAMESPACE/NAME of one in another namespace, or Dedicated",
                127,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="The ServingPool that serves the model besides those of other jobs: its name, or NAMESPACE/NAME of one in "
        "another namespace that allows this one. Dedicated: a server of the job's own. Absent: the default pool of the base "
        "model, if there is one that fits, or else a server of its own.",
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
