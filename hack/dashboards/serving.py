"""The served models: for whoever is on call when answers are slow."""

from dashboards.grafana import NAMESPACES, Dashboard, Panel, Variable, quantiles

SERVED = 'namespace=~"$namespace",finetunejob=~"$finetunejob",stage="serve"'
BY_REVISION = "namespace, finetunejob, revision"
REVISION = "{{finetunejob}} {{revision}}"


def rate(metric: str, by: str = BY_REVISION) -> str:
    return f"sum by ({by}) (rate({metric}{{{SERVED}}}[$__rate_interval]))"


def latency(metric: str) -> dict[str, str]:
    found = quantiles(f"{metric}{{{SERVED}}}", BY_REVISION, "$__rate_interval", 0.5, 0.95)
    return {f"{REVISION} {legend.rpartition(' ')[2]}": query for legend, query in found.items()}


BOARD = Dashboard(
    "finetune-serving",
    "FineTune / Serving",
    "The served models, by job and revision.",
    [
        NAMESPACES,
        Variable("finetunejob", "label_values(finetune_job_replicas, finetunejob)", True),
    ],
    [
        Panel(
            "Ready servers",
            "Ready and requested server pods.",
            {
                f"{REVISION} ready": f"finetune_job_ready_replicas{{{SERVED}}}",
                f"{REVISION} requested": f"finetune_job_replicas{{{SERVED}}}",
            },
            kind="stat",
            width=16,
            height=5,
        ),
        Panel(
            "GPUs",
            "Held by servers.",
            {"{{finetunejob}} {{gpu_type}}": f"sum by (finetunejob, gpu_type) (finetune_job_gpus{{{SERVED}}})"},
            kind="stat",
            height=5,
        ),
        Panel("Requests", "Completed per second.", {REVISION: rate("vllm:request_success_total")}, "reqps"),
        Panel(
            "Requests running and waiting",
            "If requests wait for long, add replicas.",
            {
                f"{REVISION} running": f"sum by ({BY_REVISION}) (vllm:num_requests_running{{{SERVED}}})",
                f"{REVISION} waiting": f"sum by ({BY_REVISION}) (vllm:num_requests_waiting{{{SERVED}}})",
            },
        ),
        Panel(
            "Why answers ended",
            "stop: the model finished. length: the answer was truncated, which is rare for a tuned model.",
            {
                f"{REVISION} {{{{finished_reason}}}}": rate(
                    "vllm:request_success_total", f"{BY_REVISION}, finished_reason"
                )
            },
            "reqps",
        ),
        Panel(
            "Time to the first token",
            "Latency until the first token of an answer.",
            latency("vllm:time_to_first_token_seconds"),
            "s",
        ),
        Panel("Whole answer", "From request to last token.", latency("vllm:e2e_request_latency_seconds"), "s"),
        Panel(
            "Between tokens",
            "Latency between two tokens of an answer.",
            latency("vllm:inter_token_latency_seconds"),
            "s",
        ),
        Panel(
            "Tokens",
            "Prompt tokens processed, and tokens generated.",
            {
                f"{REVISION} prompt": rate("vllm:prompt_tokens_total"),
                f"{REVISION} generated": rate("vllm:generation_tokens_total"),
            },
        ),
        Panel(
            "KV cache in use",
            "At 1, requests wait for free space.",
            {REVISION: f"max by ({BY_REVISION}) (vllm:kv_cache_usage_perc{{{SERVED}}})"},
            "percentunit",
        ),
        Panel(
            "Prompts found in the prefix cache",
            "Share of the prompt tokens that were not computed again.",
            {REVISION: f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}"},
            "percentunit",
        ),
    ],
)
