{{/*
Everything that the operator may do in the namespaces of jobs, and nothing more. It never reads Secrets: only the pods
of a job mount them. Server-side apply is `create` + `patch`.
*/}}
{{- define "finetune-operator.rules" -}}
# jobs: watched; deleted when ttlSecondsAfterFinished has passed
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch, delete]
# the one place where the operator writes what it knows
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
# stages and attempts: preflight, training, evaluation, verification
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# servers of tuned models
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# the servers' Services; run files and progress
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
# the identity of a job's pods, for jobs that name none
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [create, patch]
# lets a job's training pod, and only it, write its own progress; Kubernetes lets nobody grant more than they have,
# so these Roles can only ever hold verbs of this list
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [create, patch]
# why a pod waits or failed: unschedulable, image pull, out of memory, exit code
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# the last lines of a failed pod, for status.failure.logTail
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# what `kubectl describe` shows
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What is cluster-scoped, in both modes. */}}
{{- define "finetune-operator.clusterrules" -}}
# the catalogue
- apiGroups: [finetune.dev]
  resources: [basemodels]
  verbs: [get, list, watch]
{{- end }}
