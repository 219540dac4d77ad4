"""The tuned models that serve: for whoever is called when answers are slow."""

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
    "The tuned models that serve, by job and revision.",
    [
        NAMESPACES,
        Variable("finetunejob", "label_values(finetune_job_replicas, finetunejob)", True),
    ],
    [
        Panel(
            "Ready servers",
            "Pods that are ready, of those that are asked for.",
            {
                f"{REVISION} ready": f"finetune_job_ready_replicas{{{SERVED}}}",
                f"{REVISION} asked for": f"finetune_job_replicas{{{SERVED}}}",
            },
            kind="stat",
            width=16,
            height=5,
        ),
        Panel(
            "GPUs",
            "That servers hold.",
            {"{{finetunejob}} {{gpu_type}}": f"sum by (finetunejob, gpu_type) (finetune_job_gpus{{{SERVED}}})"},
            kind="stat",
            height=5,
        ),
        Panel("Requests", "Answered per second.", {REVISION: rate("vllm:request_success_total")}, "reqps"),
        Panel(
            "Requests at work and waiting",
            "Those that wait for long want another replica.",
            {
                f"{REVISION} at work": f"sum by ({BY_REVISION}) (vllm:num_requests_running{{{SERVED}}})",
                f"{REVISION} waiting": f"sum by ({BY_REVISION}) (vllm:num_requests_waiting{{{SERVED}}})",
            },
        ),
        Panel(
            "Why answers ended",
            "stop: the model was done. length: it was cut off, which a tuned model rarely is.",
            {
                f"{REVISION} {{{{finished_reason}}}}": rate(
                    "vllm:request_success_total", f"{BY_REVISION}, finished_reason"
                )
            },
            "reqps",
        ),
        Panel(
            "Time to the first token",
            "What a person waits before something appears.",
            latency("vllm:time_to_first_token_seconds"),
            "s",
        ),
        Panel("Whole answer", "From request to last token.", latency("vllm:e2e_request_latency_seconds"), "s"),
        Panel("Between tokens", "The pace of an answer.", latency("vllm:inter_token_latency_seconds"), "s"),
        Panel(
            "Tokens",
            "Read from prompts, and written.",
            {
                f"{REVISION} read": rate("vllm:prompt_tokens_total"),
                f"{REVISION} written": rate("vllm:generation_tokens_total"),
            },
        ),
        Panel(
            "KV cache in use",
            "At 1 requests wait for room.",
            {REVISION: f"max by ({BY_REVISION}) (vllm:kv_cache_usage_perc{{{SERVED}}})"},
            "percentunit",
        ),
        Panel(
            "Prompts found in the prefix cache",
            "Share of the prompts' tokens that were not computed again.",
            {REVISION: f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}"},
            "percentunit",
        ),
    ],
)
