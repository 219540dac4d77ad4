"""The few requests that the tests of the API make, always with strict field validation, as kubectl does."""

import json
from typing import Any

import kubernetes.client
import pytest

import finetune_api


class Api:
    """Requests in one namespace. `dry` ones go through admission and defaulting, and are not stored."""

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str, *, dry: bool = False) -> None:
        self.objects = kubernetes.client.CustomObjectsApi(client)
        self.namespace = namespace
        self.dry = dry

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        options = {"field_validation": "Strict"} | ({"dry_run": "All"} if self.dry else {})
        where = (finetune_api.GROUP, finetune_api.VERSION)
        if manifest["kind"] == "BaseModel":
            return self.objects.create_cluster_custom_object(*where, "basemodels", manifest, **options)
        return self.objects.create_namespaced_custom_object(*where, self.namespace, "finetunejobs", manifest, **options)

    def replace(self, manifest: dict[str, Any], *, subresource: str = "") -> dict[str, Any]:
        replace = getattr(self.objects, f"replace_namespaced_custom_object{subresource}")
        name = manifest["metadata"]["name"]
        where = (finetune_api.GROUP, finetune_api.VERSION, self.namespace, "finetunejobs", name)
        return replace(*where, manifest, field_validation="Strict")

    def refusal(self, manifest: dict[str, Any]) -> list[tuple[str, str]]:
        """Field and message of each cause for which the manifest is refused."""
        with pytest.raises(kubernetes.client.ApiException) as refused:
            self.create(manifest)
        return causes(refused.value)


def causes(error: kubernetes.client.ApiException) -> list[tuple[str, str]]:
    answer = json.loads(error.body)
    assert error.status in (400, 422), answer
    listed = answer.get("details", {}).get("causes") or [{"field": "", "message": answer["message"]}]
    return [(cause.get("field", ""), cause["message"]) for cause in listed]
