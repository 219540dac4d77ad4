{{/*
Everything that the operator may do in the namespaces of jobs, and nothing more. It never reads Secrets: only the pods
of a job mount them. Server-side apply is `create` + `patch`; what is watched is never fetched one by one.
*/}}
{{- define "finetune-operator.rules" -}}
# jobs: watched; deleted when ttlSecondsAfterFinished has passed
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [list, watch, delete]
# the operator's only record
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
# needed for blocking owner references where OwnerReferencesPermissionEnforcement is enabled (OpenShift)
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
# servers that many jobs share; their status; as for jobs
- apiGroups: [finetune.dev]
  resources: [servingpools]
  verbs: [list, watch]
- apiGroups: [finetune.dev]
  resources: [servingpools/status]
  verbs: [patch]
- apiGroups: [finetune.dev]
  resources: [servingpools/finalizers]
  verbs: [update]
# of a pool: its pods are evicted one at a time
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch]
# stages and attempts: preflight, training, evaluation, verification; created once, and never changed
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, delete]
{{- if .Values.ingress.enabled }}
# the address of a pool outside of the cluster
- apiGroups: [networking.k8s.io]
  resources: [ingresses]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if .Values.gatewayAPI.enabled }}
# the address of a job's own servers at the platform's Gateway, and the shares of a rollout; or that of a pool
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if .Values.gatewayAPI.inference.enabled }}
# the pods of a pool, for an endpoint picker
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if .Values.gatewayAPI.inference.modelRewrites }}
# the adapters behind the names of a pool's models, and their shares, for llm-d's endpoint picker
- apiGroups: [llm-d.ai]
  resources: [inferencemodelrewrites]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if .Values.kueue.enabled }}
# why a stage waits in its queue
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list, watch]
{{- end }}
# servers of tuned models
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
# of servers: the one that clients use, and one for each release's verification; during multi-node training:
# the headless one of the training pods
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch, delete]
# why a pod waits or failed: unschedulable, image pull, out of memory, exit code, last log lines; the address from which a training's
# progress is read
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# list: why the API server refuses a Job's pods (quota, admission); create: what `kubectl describe` shows
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end }}

{{/* Cluster-scoped objects, in both modes. */}}
{{- define "finetune-operator.clusterrules" -}}
# the catalogue
- apiGroups: [finetune.dev]
  resources: [basemodels]
  verbs: [list, watch]
{{- end }}

{{/* Kinds that the operator may not write, since their values are off: what it wrote of them before is removed by an upgrade. Only those
of groups that the cluster has: an upgrade needs the rights that it gives. */}}
{{- define "finetune-operator.unwanted" -}}
{{- $values := list
  (list .Values.ingress.enabled "networking.k8s.io" "v1" "ingresses")
  (list .Values.gatewayAPI.enabled "gateway.networking.k8s.io" "v1" "httproutes")
  (list .Values.gatewayAPI.inference.enabled "inference.networking.k8s.io" "v1" "inferencepools")
  (list .Values.gatewayAPI.inference.modelRewrites "llm-d.ai" "v1alpha2" "inferencemodelrewrites")
}}
{{- range $values }}
{{- $group := index . 1 }}
{{- $version := index . 2 }}
{{- if and (not (first .)) ($.Capabilities.APIVersions.Has (printf "%s/%s" $group $version)) }}
- {group: {{ $group }}, version: {{ $version }}, plural: {{ last . }}}
{{- end }}
{{- end }}
{{- end }}
