"""How the tuned model is served."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api import arguments, model
from finetune_api.resources import ServerResources

APPROVE = "finetune.dev/approve"
"""Annotation: the name of the release (status.release) that a person approves."""
ROLLOUT = "finetune.dev/rollout"
"""Annotation: `hold`, or `promote` or `rollback` and the revision that is meant."""

Duration = Annotated[
    str, model.text(r"^[0-9]{1,6}[smh]$", "must be a number of seconds, minutes or hours: 90s, 10m, 2h", 8)
]


Host = Annotated[
    str,
    model.text(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        "must be a host name without scheme, port and wildcard, for example models.example.com",
        253,
    ),
]


def seconds(duration: str) -> int:
    """The seconds of a Duration."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


class Step(model.Model):
    """A share of the traffic for the new revision, and how long it lasts at least."""

    weight: int = Field(ge=1, le=99, description="Percent of the requests that the new revision answers.")
    pause: Duration = Field(
        default="10m",
        description="The least time until the next step, for example 10m. The step also lasts until the new revision has "
        "answered minimumRequests, at most six times this long. Default: 10m.",
    )


class Rollout(model.Model):
    """How a new revision replaces the serving one."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.steps) || self.steps.map(step, step.weight).isSorted()",
                "the weights of rollout.steps must not fall: write them in growing order",
            ),
        )
    }

    strategy: Literal["BlueGreen", "Recreate"] = Field(
        default="BlueGreen",
        description="BlueGreen (the default): the new revision starts beside the serving one and replaces it once "
        "verified. Recreate: the serving one is stopped first, for clusters without a spare GPU, and is "
        "restored if the new one fails.",
    )
    steps: list[Step] = Field(
        default_factory=list,
        max_length=10,
        description="The shares of the traffic that a verified revision gets before all of it, in growing order. Between two "
        "steps its answers are compared with those of the serving revision; one that is shown to be worse is rolled back "
        "at once. Needs a ServingPool (deployment.pool) or a route (deployment.route). Default: all traffic at once.",
    )
    minimum_requests: int = Field(
        default=50,
        ge=0,
        le=1_000_000,
        description="Requests that the new revision must answer in a step before the next one begins. Default: 50.",
    )
    watch: Duration = Field(
        default="30m",
        description="How long after the last step errors and times of a revision in a ServingPool are compared with those "
        "of the former one, to go back if they are shown to be worse. An edit that starts other work ends it. Default: 30m.",
    )
    keep_previous: int = Field(
        default=1,
        ge=0,
        le=10,
        description="Former revisions whose adapters a ServingPool keeps, so that the annotation finetune.dev/rollout can go "
        "back to the newest of them at once. Default: 1.",
    )


class Route(model.Model):
    """The way in through the platform's Gateway: an HTTPRoute to the job's own servers, for /v1 alone."""

    host: Host = Field(description="The name under which clients reach the model through the Gateway: HOST/v1.")


class Idle(model.Model):
    """Without requests there are no servers, and no GPUs."""

    after: Duration = Field(
        default="30m", description="How long no client must have asked before the servers end. Default: 30m."
    )
    requests: Literal["Hold", "Refuse"] = Field(
        default="Hold",
        description="What a request gets while no server is ready; either way, it starts the servers. Hold: it waits, and is "
        "answered by them. Refuse: 503 with Retry-After, at once. Default: Hold.",
    )
    hold_for: Duration = Field(
        default="10m",
        description="How long a request is held at most; then it gets 503 with Retry-After. Default: 10m.",
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
            _of_the_pool("route", "!has(self.route)", "remove it; the address of a pool is its spec.ingress"),
            _of_the_pool("idle", "!has(self.idle)", "remove it; a pool goes to zero by its own spec.idle"),
            (
                "!has(self.route) || has(self.apiKeySecret)",
                "deployment.route needs deployment.apiKeySecret: without a key whoever reaches the host could use the model",
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
    approval: Literal["None", "Required"] = Field(
        default="None",
        description="Required: a verified revision gets no traffic until a person approves it, by the annotation "
        "finetune.dev/approve with the name in status.release. None (the default): verified revisions are rolled out.",
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How a new revision replaces the serving one.")
    route: Route | None = Field(
        default=None,
        description="An address through the platform's Gateway (Gateway API), for a server of the job's own, by an HTTPRoute "
        "whose weights also share the traffic in rollout.steps. Needs apiKeySecret, and gatewayAPI.enabled in the chart; such a "
        "job is placed in no default pool. Default: none.",
    )
    idle: Idle | None = Field(
        default=None,
        description="Servers of the job's own end when no request has come for a while; the next one starts them, and is held or "
        "refused meanwhile. Such a job is placed in no default pool. Absent: they always run.",
    )
    api_key_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY clients must send as a bearer "
        "token. Absent: no token is required.",
    )
