"""One job: for whoever trains it."""

import dataclasses

from dashboards.grafana import NAMESPACES, Dashboard, Panel, Variable

JOB = 'namespace="$namespace",finetunejob="$finetunejob",revision=~"$revision"'


def live(name: str, labels: str = "revision") -> str:
    """Query: the trainer's own metric while its pod runs, and the value in the status afterwards."""
    return f"max by ({labels}) (finetune_trainer_{name}{{{JOB}}}) or max by ({labels}) (finetune_job_{name}{{{JOB}}})"


BOARD = Dashboard(
    "finetune-job",
    "FineTune / Job",
    "One job: training progress, evaluation, cost. A finished training shows its last values.",
    [
        dataclasses.replace(NAMESPACES, several=False),
        Variable("finetunejob", 'label_values(finetune_job_status{namespace="$namespace"}, finetunejob)', False),
        Variable(
            "revision",
            'label_values(finetune_job_status{namespace="$namespace",finetunejob="$finetunejob"}, revision)',
            True,
        ),
    ],
    [
        Panel(
            "Phase",
            "The phase, and the reason of the Ready condition.",
            {"{{phase}}: {{reason}} ({{revision}})": f"finetune_job_status{{{JOB}}}"},
            kind="table",
            width=8,
            height=5,
        ),
        Panel(
            "Progress",
            "Share of the optimizer steps done, or of the evaluation while it runs.",
            {"{{stage}} {{revision}}": live("progress_ratio", "revision, stage")},
            "percentunit",
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Evaluation",
            "1 when every gate passed.",
            {"{{revision}}": f"max by (revision) (finetune_job_evaluation_passed{{{JOB}}})"},
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "GPU-hours",
            "GPU-hours of all stages, attempts and revisions; serving is not counted.",
            {
                "GPU-hours": 'finetune_job_gpu_seconds_total{namespace="$namespace",finetunejob="$finetunejob"} / 3600',
            },
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Cost",
            "Cost of those GPU-hours.",
            {"{{currency}}": 'finetune_job_cost_total{namespace="$namespace",finetunejob="$finetunejob"}'},
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Loss",
            "Nats per learned token, in training and validation.",
            {
                "training {{revision}}": live("loss"),
                "validation {{revision}}": live("validation_loss"),
            },
            width=12,
        ),
        Panel(
            "Evaluation compared with baselines",
            "Each metric of each contender, on held-out test examples.",
            {
                "{{metric}} {{contender}}": "max by (metric, contender, revision) "
                f"(finetune_job_evaluation_value{{{JOB}}})"
            },
            kind="bargauge",
            width=12,
        ),
        Panel(
            "Tokens per second",
            "Training throughput, including prompts.",
            {"{{revision}}": live("tokens_per_second")},
        ),
        Panel(
            "Time left",
            "The trainer's estimate.",
            {"{{revision}}": live("eta_seconds")},
            "s",
        ),
        Panel(
            "Memory",
            "Peak of the GPU, or of the process on a CPU.",
            {"{{revision}} {{stage}}": f"max by (revision, stage) (finetune_trainer_memory_bytes{{{JOB}}})"},
            "bytes",
        ),
        Panel(
            "Learning rate",
            "Warm-up, then decay.",
            {"{{revision}}": f"max by (revision) (finetune_trainer_learning_rate{{{JOB}}})"},
            "sci",
        ),
        Panel(
            "Gradient norm",
            "Before clipping; a lasting rise is an early sign of divergence.",
            {"{{revision}}": f"max by (revision) (finetune_trainer_gradient_norm{{{JOB}}})"},
        ),
        Panel(
            "Steps since the last checkpoint",
            "Steps that would have to be repeated if the pod were lost now.",
            {"{{revision}}": f"finetune_job_steps{{{JOB}}} - finetune_job_checkpoint_step{{{JOB}}}"},
        ),
    ],
)
