"""A candidate, from spec, base model, adapter and settings."""

import json
import posixpath

from finetune_api import job, run, status
from finetune_operator import settings
from finetune_operator.manifests import pods, vllm
from finetune_operator.observe.records import Release


def arguments(
    base: run.ResolvedBaseModel, adapter: status.Adapter, served: str, wanted: job.Deployment, chart: settings.Settings
) -> list[str]:
    """vLLM's command line. The API key is passed by environment, never as an argument."""
    template = posixpath.join(run.ADAPTER_PATH, "chat_template.jinja")
    return vllm.arguments(
        base,
        adapter.rank,
        wanted.resources.gpus,
        chart,
        wanted.extra_args,
        first=(f"--lora-modules={served}={run.ADAPTER_PATH}",),
        then=(f"--chat-template={template}",) if adapter.chat_template else (),
    )


def build(
    name: str,
    *,
    content: run.Run,
    adapter: status.Adapter,
    spec: job.FineTuneJobSpec,
    chart: settings.Settings,
    canary: str | None,
    pool: str | None = None,
) -> Release:
    """`content`: the run file of the revision. `pool`: the ServingPool; its servers are not described here."""
    served = content.served_model_name
    if pool is not None:
        schema = spec.evaluation.output_schema
        return Release(
            name=name,
            revision=content.revision,
            pool=pool,
            output_schema=None if schema is None else json.dumps(schema),
            base_model=content.base_model,
            adapter=adapter,
            deployment=spec.deployment,
            storage=content.storage,
            served_model_name=served,
            image="",
            fetch_image="",
            canary=canary,
        )
    claim = chart.model_claim(content.namespace)
    return Release(
        name=name,
        revision=content.revision,
        base_model=content.base_model,
        adapter=adapter,
        deployment=spec.deployment,
        storage=content.storage,
        served_model_name=served,
        image=spec.deployment.image or chart.images.serving,
        fetch_image=chart.images.fetch,
        arguments=arguments(content.base_model, adapter, served, spec.deployment, chart),
        env=chart.pods_of(None, spec.deployment.resources.gpu_type).env,
        shm_size=chart.serving.shm_size,
        disk=pods.disk(content.base_model, 0, cached=claim is not None),
        model_claim=claim,
        ca_bundle=content.storage.ca_bundle or chart.ca_bundle,
        canary=canary,
        run_file=content.without_judgement(),
    )
