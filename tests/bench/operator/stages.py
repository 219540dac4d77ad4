"""What KWOK is told: how nodes and pods fare. The pods of our stages answer as the flow tests' usual script says.

Each stage's container starts at once, runs for RUNS seconds, and ends with exit code 0 and the termination message of a stage
that went well. Pods of servers start and stay ready. Pure.
"""

import json
from typing import Any

from finetune_api.reasons import Stage
from finetune_operator.observe import label
from flow import world

Raw = dict[str, Any]
RUNS = 2.0
"""Seconds between the start and the end of a stage's container: long enough that the operator sees it run."""
REVISION = "@revision@"
_LABEL = f'{{{{ index $root.metadata.labels "{label.REVISION}" }}}}'

_NODE = """
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
  message: {{ .message | Quote }}
  reason: {{ .reason | Quote }}
  status: {{ .status | Quote }}
  type: {{ .type | Quote }}
{{ end }}
phase: Running
"""
_RUNS = """
{{ $now := Now }}
conditions:
{{ range $type := list "Initialized" "Ready" "ContainersReady" }}
- lastTransitionTime: {{ $now | Quote }}
  status: "True"
  type: {{ $type }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- image: {{ .image | Quote }}
  imageID: ""
  name: {{ .name | Quote }}
  ready: true
  started: true
  restartCount: 0
  state:
    running:
      startedAt: {{ $now | Quote }}
{{ end }}
initContainerStatuses:
{{ range .spec.initContainers }}
- image: {{ .image | Quote }}
  imageID: ""
  name: {{ .name | Quote }}
  ready: true
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
{{ end }}
hostIP: 127.0.0.1
podIP: 127.0.0.1
podIPs:
- ip: 127.0.0.1
phase: Running
startTime: {{ $now | Quote }}
"""
_ENDS = """
{{ $now := Now }}
{{ $root := . }}
conditions:
{{ range $type := list "Ready" "ContainersReady" }}
- lastTransitionTime: {{ $now | Quote }}
  status: "False"
  reason: PodCompleted
  type: {{ $type }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- image: {{ .image | Quote }}
  imageID: ""
  name: {{ .name | Quote }}
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      message: @message@
      startedAt: {{ $root.status.startTime | Quote }}
      finishedAt: {{ $now | Quote }}
{{ end }}
phase: Succeeded
"""


def answers() -> dict[Stage, str]:
    """What the pods of each stage say at their end."""
    return {
        stage: world.World._usual(stage, {label.REVISION: REVISION}).message
        for stage in (Stage.PREFLIGHT, Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE, Stage.VERIFY)
    }


def configuration() -> list[Raw]:
    """The documents of KWOK's configuration file."""
    # A file that is given replaces KWOK's own defaults: every number that must not be 0 is named.
    options = {
        "cidr": "10.0.0.0/24",
        "podPlayStageParallelism": 16,
        "nodePlayStageParallelism": 4,
        "nodeLeaseParallelism": 4,
        "podsOnNodeSyncParallelism": 4,
        "enablePodsOnNodeSyncListPager": False,
        "enablePodsOnNodeSyncStreamWatch": True,
        "enableProfilingHandler": False,
    }
    return [
        {"apiVersion": "config.kwok.x-k8s.io/v1alpha1", "kind": "KwokConfiguration", "options": options},
        stage("node", "Node", {}, [_is(".status.phase", "NotIn", "Running")], {"statusTemplate": _NODE}),
        stage("pod-runs", "Pod", {}, [_LIVES, _is(".status.phase", "In", "Pending")], {"statusTemplate": _RUNS}),
        stage("pod-goes", "Pod", {}, [{"key": _DELETED, "operator": "Exists"}], {"delete": True}),
        *(
            stage(
                f"{name.lower()}-ends",
                "Pod",
                {label.STAGE: name.value},
                [_LIVES, _is(".status.phase", "In", "Running")],
                {"statusTemplate": _ENDS.replace("@message@", quoted(message))},
                delay=RUNS,
            )
            for name, message in answers().items()
        ),
    ]


def quoted(message: str) -> str:
    """A termination message as a YAML string inside a template: the pod's own revision in its place."""
    assert "{{" not in message, f"KWOK would read a part of this as a template: {message}"
    return json.dumps(message).replace(REVISION, _LABEL)


_DELETED = ".metadata.deletionTimestamp"
_LIVES: Raw = {"key": _DELETED, "operator": "DoesNotExist"}


def _is(key: str, operator: str, value: str) -> Raw:
    return {"key": key, "operator": operator, "values": [value]}


def stage(name: str, kind: str, labels: dict[str, str], expressions: list[Raw], then: Raw, delay: float = 0) -> Raw:
    """One Stage of KWOK: objects of this kind and state move to the next one, `delay` seconds later."""
    selector: Raw = {"matchExpressions": expressions} | ({"matchLabels": labels} if labels else {})
    spec: Raw = {"resourceRef": {"apiGroup": "v1", "kind": kind}, "selector": selector, "next": then}
    if delay:
        spec["delay"] = {"durationMilliseconds": int(delay * 1000)}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


def node(name: str) -> Raw:
    """A node for KWOK to play, with room for everything."""
    room = {"cpu": "100k", "memory": "1000Ti", "pods": "1M", "nvidia.com/gpu": "100k", "ephemeral-storage": "1000Ti"}
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"capacity": room, "allocatable": room},
    }
