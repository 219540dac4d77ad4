"""What the operator and the gateways of a ServingPool tell each other, as JSON over HTTP.

    operator:  GET http://SERVICE:INDEX_PORT/pools/NAMESPACE/NAME         Index    what the pool is to hold, and who may use it
    gateway:   GET http://POD:DELIVERY_PORT/state                         State    what this pod holds, and its traffic
    stages:    PUT http://POD:DELIVERY_PORT/adapters/SHA256               a tar file, manifest.json first: an adapter is delivered
               ANY http://POD:DELIVERY_PORT/adapters/SHA256/v1/...        OpenAI's API with this adapter, before clients have it
    gateways:  GET http://POD:DELIVERY_PORT/adapters/SHA256               the same tar file, for a pod that lacks it
               GET http://POD:DELIVERY_PORT/index                         the Index that it follows, for a pod without operator
    clients:   ANY http://SERVICE:SERVER_PORT/v1/...                      OpenAI's API with the models of the client's key
    activator: the same API and /state, without an engine: it holds requests until a pod of the pool can answer

An adapter is named by the SHA-256 of its manifest, which lists the hash of every file: whoever delivers it proves by the content
that it is the one in the index, so that a delivery needs no credentials, and nobody's storage credentials reach the pool.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from finetune_api import model

INDEX_PORT = 9500
"""Port of the operator's pods and Service for the index."""

DELIVERY_PORT = 8002
"""Port of a pool's pods for deliveries, their state and each other; not in the Service that clients use."""

ENGINE_PORT = 8001
"""Port of vLLM in a pool's pod, on loopback only."""

WAIT = "after"
"""Query parameter of the index: the etag that the caller has. The answer comes when it changes, or 304 after WAIT_SECONDS."""

WAIT_SECONDS = 25.0

STICKY_HEADERS = ("x-conversation-id", "x-user-id")
"""Requests with the same value of the first of these headers, or else of OpenAI's field `user`, get the same revision during a
rollout, as long as its steps only grow."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Route(model.Model):
    """A revision that answers under a model's name."""

    revision: str
    sha256: Sha256
    weight: int = Field(ge=0, le=100, description="Percent of the requests.")


class Served(model.Model):
    """A model that clients may use, with the revisions that answer."""

    namespace: str
    job: str
    name: str = Field(description="What clients send as `model`; unique in the namespace.")
    routes: list[Route] = Field(min_length=1, description="Their weights add up to 100.")
    step: str = Field(default="", description="Changes with every step of a rollout: traffic is counted from there.")
    json_schema: str | None = Field(
        default=None, description="evaluation.outputSchema, as JSON: answers are checked with it."
    )


class Held(model.Model):
    """An adapter that the pool keeps; one that is in no route is being verified, or kept to go back to."""

    namespace: str
    job: str
    revision: str
    sha256: Sha256
    rank: int
    bytes: int


class Index(model.Model):
    """The whole of what a pool is to hold. An adapter that is not in it is removed after a minute."""

    pool: str = Field(description="NAMESPACE/NAME")
    etag: str = Field(description="A hash of the rest.")
    models: list[Served] = Field(default_factory=list)
    adapters: list[Held] = Field(default_factory=list)
    rewritten: bool | None = Field(
        default=None,
        description="Whether an endpoint picker may have put an adapter's SHA-256 in place of a model's name. Absent: no.",
    )


class Histogram(model.Model):
    """Counts of values by the upper bounds BOUNDS, one more for those above; not cumulative."""

    counts: list[int] = Field(default_factory=list, description="How many values lie below each bound.")
    sum: float = Field(default=0.0, description="The sum of all values.")


BOUNDS = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    3.0,
    5.0,
    7.5,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
    120.0,
)
"""Seconds."""


class Counts(model.Model):
    """Requests of clients, and what became of them."""

    requests: int = Field(default=0, description="All but those that were refused as the client's mistake (4xx).")
    errors: int = Field(default=0, description="Answered with 5xx, or broken off by the engine.")
    abandoned: int | None = Field(
        default=None,
        description="Broken off by the client before the end of the answer. Absent: gateways of a former version, which count "
        "fewer errors, too.",
    )
    empty: int = Field(default=0, description="Answers without text and tool calls.")
    cut: int = Field(default=0, description="Answers that ended at the limit of tokens (finish_reason length).")
    checked: int = Field(default=0, description="Answers that were checked with the JSON schema.")
    invalid: int = Field(default=0, description="Those of them that do not fit it, or are no JSON.")
    seconds: Histogram = Field(default_factory=Histogram, description="Of whole answers.")
    first_token: Histogram = Field(default_factory=Histogram, description="To the first byte of an answer.")

    @property
    def answers(self) -> int:
        return max(self.requests - self.errors - (self.abandoned or 0), 0)


class Traffic(Counts):
    """Requests of clients that one revision answered, since the step of the rollout began or the gateway started."""

    namespace: str = Field(description="The job's namespace.")
    job: str = Field(description="The job's name.")
    name: str = Field(description="What clients send as `model`.")
    revision: str = Field(description="The revision that answered.")
    step: str = Field(default="", description="The step of the rollout.")
    since: datetime = Field(description="When counting began.")
    prompt_tokens: int = Field(default=0, description="Tokens of the prompts.")
    answer_tokens: int = Field(default=0, description="Tokens of the answers.")


class AdapterState(model.Model):
    """An adapter of the index on one pod."""

    sha256: Sha256
    state: Literal["Missing", "Loading", "Ready", "Failed"] = Field(
        description="Loading: on disk and verified by hash. Ready: accepted by the engine, too. Failed: refused by it."
    )
    message: str = ""
    ready_at: datetime | None = None
    resident: bool | None = Field(
        default=None, description="Whether it is in the engine's memory; absent where that is unknown."
    )


class State(model.Model):
    """One pod of a pool. At most STATE_BYTES."""

    pool: str
    etag: str = Field(description="Of the index that it follows; empty before the first.")
    engine_ready: bool
    running: int = Field(default=0, description="Requests that are being answered.")
    waiting: int = Field(default=0, description="Requests that wait for their adapter, or for a pod that can answer.")
    requests: int | None = Field(
        default=None, description="Requests of clients that are over, for whatever model, since the gateway started."
    )
    idle_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Since the last request of a client ended, or else since the pod became ready; in an activator since the "
        "last request came. Absent: neither was.",
    )
    adapters: list[AdapterState] = Field(default_factory=list)
    traffic: list[Traffic] = Field(default_factory=list)


STATE_BYTES = 4 << 20

INDEX_BYTES = 16 << 20
"""Most bytes of an index; a thousand models have about one million."""


def verify_key(manifest: bytes) -> str:
    """The bearer token for /adapters/SHA256/v1, from the bytes of the adapter's manifest: whoever can read the adapter in its
    bucket can compute it, as can every pod that holds the adapter. The adapter's name does not reveal it."""
    return hashlib.sha256(b"verify\n" + manifest).hexdigest()
