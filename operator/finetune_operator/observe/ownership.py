"""Who else owns fields of an object's spec, from its managedFields: a field that another manager changed is its."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_operator.observe import label

Raw = Mapping[str, Any]


def others(raw: Raw) -> dict[str, str]:
    """Path of a field of the spec -> the manager that owns it, where that is not the operator: `replicas`,
    `template.spec.containers[server].image`. What an admission controller changes is not among these: the API server
    records it as the field manager's of the request."""
    entries = [e for e in raw["metadata"].get("managedFields") or [] if e.get("subresource") != "status"]
    ours, found = set[str](), dict[str, str]()
    for entry in entries:
        manager, fields = str(entry.get("manager", "")), (entry.get("fieldsV1") or {}).get("f:spec") or {}
        if manager == label.MANAGER:
            ours.update(_leaves(fields))
        else:
            found.update(dict.fromkeys(_leaves(fields), manager))
    return {path: manager for path, manager in sorted(found.items()) if path not in ours}


def _leaves(fields: Raw, path: str = "") -> Iterator[str]:
    """The paths of a fieldsV1 tree that have nothing below them."""
    for key, inner in fields.items():
        if key == ".":
            continue
        place = _below(path, key)
        if any(name != "." for name in inner):
            yield from _leaves(inner, place)
        else:
            yield place


def _below(path: str, key: str) -> str:
    kind, _, name = key.partition(":")
    if kind == "f":
        return f"{path}.{name}" if path else name
    if kind == "k":
        name = ",".join(str(value) for value in json.loads(name).values())
    return f"{path}[{name}]"
