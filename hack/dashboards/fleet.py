"""All jobs of a cluster: for the platform team."""

from dashboards.grafana import NAMESPACES, Dashboard, Panel, quantiles

JOBS = 'namespace=~"$namespace"'

BOARD = Dashboard(
    "finetune-fleet",
    "FineTune / Fleet",
    "All jobs of a cluster: phases, waiting reasons, cost.",
    [NAMESPACES],
    [
        Panel(
            "Jobs by phase",
            "Number of jobs in each phase now.",
            {"{{phase}}": f"count by (phase) (finetune_job_status{{{JOBS}}})"},
            kind="stat",
            width=12,
            height=5,
        ),
        Panel(
            "GPUs held now",
            "Held by the pods of stages, by jobs' own servers (serve), and by ServingPools (pools).",
            {
                "{{stage}}": f"sum by (stage) (finetune_job_gpus{{{JOBS}}})",
                "pools": f"sum(finetune_pool_gpus{{{JOBS}}}) or vector(0)",
            },
            kind="stat",
            width=6,
            height=5,
        ),
        Panel(
            "Leaders",
            "Exactly one replica reconciles; 0 for minutes means that no job makes progress.",
            {"leaders": "sum(finetune_leader)"},
            kind="stat",
            width=3,
            height=5,
        ),
        Panel(
            "Failed now",
            "Jobs whose current revision failed; an earlier one may still serve.",
            {"failed": 'sum(finetune_jobs{phase="Failed"})'},
            kind="stat",
            width=3,
            height=5,
        ),
        Panel(
            "Phases over time",
            "Jobs are stuck in a phase that only grows.",
            {"{{phase}}": f"count by (phase) (finetune_job_status{{{JOBS}}})"},
            width=12,
            stacked=True,
        ),
        Panel(
            "Phases and reasons",
            "The reason of the Ready condition: what a job waits for, or why it failed.",
            {
                "{{namespace}} {{phase}} {{reason}}": "count by (namespace, phase, reason) "
                f"(finetune_job_status{{{JOBS}}})"
            },
            kind="table",
            width=12,
        ),
        Panel(
            "Queue wait",
            "From the creation of a stage's Job to the start of its container, over the last hour: scheduling, "
            "images, quotas.",
            quantiles("finetune_queue_wait_seconds", "stage", "1h", 0.5, 0.95),
            "s",
        ),
        Panel(
            "Stage durations",
            "From the creation of a stage's Job to its success, over the last six hours.",
            quantiles('finetune_stage_duration_seconds{result="succeeded"}', "stage", "6h", 0.5, 0.95),
            "s",
        ),
        Panel(
            "Failures",
            "Attempts that failed in the last hour, and those that are retried, by reason.",
            {
                "{{stage}} failed": 'sum by (stage) (increase(finetune_stage_duration_seconds_count{result="failed"}[1h]))',
                "{{stage}} retried: {{reason}}": "sum by (stage, reason) (increase(finetune_retries_total[1h]))",
            },
        ),
        Panel(
            "Failed jobs by reason",
            "Reasons of the jobs whose current revision has failed.",
            {"{{reason}}": f'count by (reason) (finetune_job_status{{{JOBS},phase="Failed"}})'},
            kind="bargauge",
        ),
        Panel(
            "GPU-hours in this time range",
            "GPU time held by training and evaluation in the selected time range, by namespace.",
            {
                "{{namespace}}": "sum by (namespace) "
                f"(increase(finetune_job_gpu_seconds_total{{{JOBS}}}[$__range])) / 3600"
            },
            kind="bargauge",
        ),
        Panel(
            "Cost of existing jobs",
            "Training and evaluation, all attempts and revisions, by the chart's gpuTypes.*.pricePerHour.",
            {"{{namespace}} {{currency}}": f"sum by (namespace, currency) (finetune_job_cost_total{{{JOBS}}})"},
            kind="bargauge",
        ),
        Panel(
            "Reconcile time",
            "Duration of one reconcile of one job, including its requests to the API server.",
            {
                f"p{quantile * 100:.0f}": f"histogram_quantile({quantile}, "
                "sum by (le) (rate(finetune_reconcile_duration_seconds_bucket[$__rate_interval])))"
                for quantile in (0.5, 0.99)
            },
            "s",
        ),
        Panel(
            "Reconcile errors",
            "refused: the API server rejected a request. unreachable: it could not be reached. defect: a bug in the "
            "operator.",
            {"{{kind}}": "sum by (kind) (rate(finetune_reconcile_errors_total[$__rate_interval]))"},
            "ops",
        ),
        Panel(
            "Operator memory",
            "Resident memory of each replica.",
            {"{{instance}}": "process_resident_memory_bytes and on (instance) finetune_leader"},
            "bytes",
        ),
    ],
)
