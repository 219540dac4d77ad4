"""The gateway's command line, as the Deployment of a pool has it:

    finetune-trainer gateway
        --pool NAMESPACE/NAME       of the ServingPool
        --index URL                 of the operator's index, without a path: http://SERVICE.NAMESPACE.svc:9500
        --adapters /adapters        the volume of adapters: the engine has it at the same path, read-only
        --peers NAME-pods.NAMESPACE.svc     DNS name of the headless Service, all pods of the pool
        --base-model NAME           the engine's --served-model-name
        --model-path /models/base   the engine's --model
        --max-rank 16               the engine's --max-lora-rank
        --in-memory 64              the engine's --max-cpu-loras
        [--keys /etc/finetune/keys] the mounted Secret, only with spec.keysSecret; without it no key is needed, and only the
                                    pool's own namespace is served
        [--serve-base-model]        clients may use the base model as well
        [--hold SECONDS]            no engine in this pod (activator): requests are held for at most so long, until a pod of the
                                    pool can answer; 0: they are refused
        [--model NAME] ...          an activator before the servers of one job, which have these names besides the base model's:
                                    --pool is the job, --peers the Service of its servers, --keys has a file of its key; there is
                                    no index, and so no --index, --max-rank and --adapters
        [--grace 50]                seconds that answers have to end after SIGTERM; the pod's terminationGracePeriodSeconds is
                                    to be 10 s longer

Ports are the contract's: SERVER_PORT for clients; DELIVERY_PORT for deliveries, /state, /healthz, /readyz and /metrics; the
engine's on loopback is ENGINE_PORT. What the pod needs besides:

    engine   --host=127.0.0.1 --enable-lora --max-loras, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and
             --trust-request-chat-template: the gateway sends an adapter's own chat template, and refuses one of a client
    engine   lifecycle.preStop.httpGet on DELIVERY_PORT, path /drained, which is answered when no answer is running any more:
             the kubelet stops both containers at once, and would end the engine before the answers
    gateway  startupProbe and livenessProbe /healthz, readinessProbe /readyz, all on DELIVERY_PORT
"""

import argparse
import dataclasses
import pathlib

from finetune_api import run, serving


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line. `keys`: None where no key is needed. `hold`: None where there is an engine. `models`: of one job."""

    pool: str
    index: str
    adapters: pathlib.Path
    peers: str
    base_model: str
    model_path: str
    max_rank: int
    in_memory: int = 64
    keys: pathlib.Path | None = None
    serve_base_model: bool = False
    hold: float | None = None
    models: tuple[str, ...] = ()
    grace: float = 50.0
    host: str | None = None
    port: int = run.SERVER_PORT
    delivery_port: int = serving.DELIVERY_PORT
    engine_port: int = serving.ENGINE_PORT

    @property
    def namespace(self) -> str:
        return self.pool.partition("/")[0]

    @property
    def engine(self) -> str:
        return f"http://127.0.0.1:{self.engine_port}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--pool", required=True, type=_pool, metavar="NAMESPACE/NAME", help="the ServingPool")
    parser.add_argument("--index", default="", metavar="URL", help="the operator's index, without a path")
    parser.add_argument("--adapters", type=pathlib.Path, default=pathlib.Path("/adapters"), help="volume of adapters")
    parser.add_argument("--peers", required=True, metavar="HOST", help="DNS name of all pods of the pool")
    parser.add_argument("--base-model", required=True, metavar="NAME", help="the engine's --served-model-name")
    parser.add_argument("--model-path", default=run.MODEL_PATH, help="the engine's --model")
    parser.add_argument("--max-rank", default=0, type=int, help="the largest rank that the engine accepts")
    parser.add_argument("--in-memory", type=int, default=64, help="the engine's --max-cpu-loras")
    parser.add_argument(
        "--keys", type=pathlib.Path, help="folder with a file of keys for each namespace; default: none"
    )
    parser.add_argument("--serve-base-model", action="store_true", help="clients may use the base model, too")
    parser.add_argument(
        "--hold",
        type=float,
        metavar="SECONDS",
        help="no engine here: requests are held for at most so long, until a pod of the pool can answer; 0: refused",
    )
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        metavar="NAME",
        help="with --hold: before the servers of one job, which have this name; there is no index",
    )
    parser.add_argument("--grace", type=float, default=50.0, help="seconds that answers have to end after SIGTERM")
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on; default: all")
    parser.add_argument("--port", type=int, default=run.SERVER_PORT, help="port for clients")
    parser.add_argument(
        "--delivery-port", type=int, default=serving.DELIVERY_PORT, help="port for deliveries, state and probes"
    )
    parser.add_argument("--engine-port", type=int, default=serving.ENGINE_PORT, help="port of the engine, on 127.0.0.1")


def of(options: argparse.Namespace) -> Settings:
    """Raises SystemExit for options that do not go together."""
    found = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    made = Settings(**found | {"models": tuple(options.models or ())})
    if made.models and made.hold is None:
        raise SystemExit("gateway: --model is of an activator: add --hold")
    if not made.models and not (made.index and made.max_rank):
        raise SystemExit("gateway: the gateway of a pool needs --index and --max-rank")
    return made


def _pool(text: str) -> str:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return text
