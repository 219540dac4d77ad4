"""ServingPools as a job sees them: their specs, and what their ready pods report about its adapters and its traffic."""

import dataclasses
import datetime

from finetune_api import run, serving, servingpool


@dataclasses.dataclass(frozen=True, slots=True)
class Pod:
    """A ready pod of a pool. `state`: what it reported last; None: it could not be read yet. It is not trusted. `read_at`: when
    that reading began; None: never, or a later one failed."""

    name: str
    state: serving.State | None = None
    read_at: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True)
class Pool:
    """A ServingPool. `name`: NAMESPACE/NAME. `base`: None if the catalogue lacks it. `pods`: the ready ones."""

    name: str
    spec: servingpool.ServingPoolSpec
    base: run.ResolvedBaseModel | None
    pods: tuple[Pod, ...] = ()
    sleeps: bool = False
    """Whether it has no servers because nobody uses them, or starts them again."""
    wakes_since: datetime.datetime | None = None
    """Since when it starts them again; None: it does not."""

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]

    @property
    def endpoint(self) -> str:
        namespace, _, name = self.name.partition("/")
        return f"http://{name}.{namespace}.svc:{run.SERVER_PORT}"

    @property
    def pods_host(self) -> str:
        """The DNS name of all its pods."""
        namespace, _, name = self.name.partition("/")
        return f"{name}-pods.{namespace}.svc"

    def adapters(self, sha256: str) -> dict[str, serving.AdapterState | None]:
        """Pod -> what it reports about this adapter; None: nothing was read from it yet."""
        return {
            pod.name: next((one for one in pod.state.adapters if one.sha256 == sha256), MISSING) if pod.state else None
            for pod in self.pods
        }

    def traffic(self, namespace: str, job: str) -> list[serving.Traffic]:
        """What all pods report about the traffic of a job."""
        found = [one for pod in self.pods if pod.state is not None for one in pod.state.traffic]
        return [one for one in found if (one.namespace, one.job) == (namespace, job)]


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """What a server of a job's own has counted in the present step of a rollout. It is not trusted. `problem`: why it could not
    be read when it was last tried."""

    traffic: serving.Traffic | None = None
    problem: str = ""


MISSING = serving.AdapterState(sha256="0" * 64, state="Missing")
