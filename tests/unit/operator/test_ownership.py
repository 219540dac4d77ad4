"""Who owns which field of a spec, in the form in which a real API server writes it."""

from finetune_operator.observe import label, ownership


def entry(manager: str, spec: dict, **more: str) -> dict:
    return {"manager": manager, "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": spec}, **more}


def owned(*entries: dict) -> dict[str, str]:
    return ownership.others({"metadata": {"managedFields": list(entries)}})


IMAGE = {"f:template": {"f:spec": {"f:containers": {'k:{"name":"server"}': {".": {}, "f:image": {}, "f:name": {}}}}}}


def test_fields_of_other_managers_are_named_by_their_path() -> None:
    scale = entry("kube-controller-manager", {"f:replicas": {}}, subresource="scale")
    assert owned(scale, entry("image-updater", IMAGE)) == {
        "replicas": "kube-controller-manager",
        "template.spec.containers[server].image": "image-updater",
        "template.spec.containers[server].name": "image-updater",
    }


def test_fields_that_the_operator_owns_too_are_not_theirs() -> None:
    assert owned(entry(label.MANAGER, {"f:replicas": {}}, operation="Apply"), entry("x", {"f:replicas": {}})) == {}


def test_a_status_is_no_spec() -> None:
    assert owned(entry("kube-controller-manager", {"f:replicas": {}}, subresource="status")) == {}


def test_ports_are_identified_by_number_and_protocol() -> None:
    ports = {"f:ports": {'k:{"port":8000,"protocol":"TCP"}': {".": {}, "f:targetPort": {}}}}
    assert owned(entry("kubectl", ports)) == {"ports[8000,TCP].targetPort": "kubectl"}


def test_an_object_without_managed_fields_belongs_to_nobody_else() -> None:
    assert ownership.others({"metadata": {}}) == {}
