"""ServingPools: who uses the shared servers, how quickly they answer, and what a rollout does to answers."""

from dashboards.grafana import Dashboard, Panel, Variable, quantiles

POOL = 'pool!="",pool=~"$pool"'
"""The activators of jobs, which have no pool, are no part of it."""
BY_MODEL = "namespace, model"
BY_REVISION = "namespace, model, revision"
REVISION = "{{namespace}}/{{model}} {{revision}}"


def rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{POOL}{more}}}[$__rate_interval]))"


def latency(metric: str) -> dict[str, str]:
    found = quantiles(f"{metric}{{{POOL}}}", BY_REVISION, "$__rate_interval", 0.5, 0.95)
    return {f"{REVISION} {legend.rpartition(' ')[2]}": query for legend, query in found.items()}


REQUESTS = "finetune_gateway_requests_total"
OF_REVISION, OF_MODEL = rate(REQUESTS, BY_REVISION), rate(REQUESTS, BY_MODEL)
FAILED = rate(REQUESTS, BY_REVISION, ',result="Failed"')

BOARD = Dashboard(
    "finetune-pools",
    "FineTune / Pools",
    "The pools of servers: adapters, tenants, and the traffic of each revision.",
    [Variable("pool", "label_values(finetune_gateway_engine_ready, pool)", True)],
    [
        Panel(
            "Adapters",
            "By state, the sum over all pods.",
            {"{{pool}} {{state}}": f"sum by (pool, state) (finetune_gateway_adapters{{{POOL}}})"},
            kind="stat",
            width=12,
            height=5,
        ),
        Panel(
            "Adapters in memory",
            "Of each pod's engine; others are loaded when a request needs them.",
            {"{{pool}} {{pod}}": f"finetune_gateway_resident_adapters{{{POOL}}}"},
            kind="stat",
            width=6,
            height=5,
        ),
        Panel(
            "Engines that answer",
            "Pods whose vLLM answers.",
            {"{{pool}}": f"sum by (pool) (finetune_gateway_engine_ready{{{POOL}}})"},
            kind="stat",
            width=6,
            height=5,
        ),
        Panel("Requests", "By model, per second.", {"{{namespace}}/{{model}}": OF_MODEL}, "reqps"),
        Panel(
            "Traffic of each revision",
            "Its share of the requests of its model: during a rollout, the weight of the step.",
            {REVISION: f"{OF_REVISION} / on ({BY_MODEL}) group_left {OF_MODEL}"},
            "percentunit",
        ),
        Panel(
            "Requests that failed",
            "By an error of the engine, as a share of the revision's.",
            {REVISION: f"({FAILED} or 0 * {OF_REVISION}) / {OF_REVISION}"},
            "percentunit",
        ),
        Panel(
            "Time to the first chunk",
            "Of streamed answers.",
            latency("finetune_gateway_time_to_first_token_seconds"),
            "s",
        ),
        Panel("Whole answer", "From request to end.", latency("finetune_gateway_request_duration_seconds"), "s"),
        Panel(
            "Tokens of each namespace",
            "Who uses the GPUs: prompt and answer tokens per second.",
            {"{{namespace}}": rate("finetune_gateway_tokens_total", "namespace")},
            stacked=True,
        ),
        Panel(
            "Requests running and waiting",
            "Waiting: for their adapter to be loaded.",
            {
                "{{pool}} running": f"sum by (pool) (finetune_gateway_running_requests{{{POOL}}})",
                "{{pool}} waiting": f"sum by (pool) (finetune_gateway_waiting_requests{{{POOL}}})",
            },
        ),
        Panel(
            "Refused by the gateway",
            "401: no known key. 404: a model that the key may not use. 503: the engine or an adapter is not there.",
            {"{{pool}} {{status}}": rate("finetune_gateway_refused_total", "pool, status")},
            "reqps",
        ),
    ],
)
