{{/* The name of everything that this release makes; short enough for a suffix. */}}
{{- define "finetune-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* The name of cluster-scoped things: with the namespace, so that two releases do not meet. */}}
{{- define "finetune-operator.clustername" -}}
{{- printf "%s-%s" (include "finetune-operator.fullname" .) .Release.Namespace | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "finetune-operator.serviceaccount" -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.fullname" .) -}}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Where the pods of jobs are, for what selects them across namespaces. */}}
{{- define "finetune-operator.namespaceselector" -}}
{{- if .Values.namespaces -}}
matchNames: {{ toJson .Values.namespaces }}
{{- else -}}
any: true
{{- end -}}
{{- end }}

{{/* An image reference: list of context, image and whether images.registry stands before it. */}}
{{- define "finetune-operator.image" -}}
{{- $context := index . 0 -}}
{{- $image := index . 1 -}}
{{- $ours := index . 2 -}}
{{- $registry := trimSuffix "/" $context.Values.images.registry -}}
{{- $name := ternary (printf "%s/%s" $registry $image.repository) $image.repository (and $ours (ne $registry "")) -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default $context.Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{/* What the operator reads at /etc/finetune-operator/settings.json. */}}
{{- define "finetune-operator.settings" -}}
{{- $images := .Values.images -}}
{{- $settings := dict
  "images" (dict
    "trainer" (include "finetune-operator.image" (list . $images.trainer true))
    "fetch" (include "finetune-operator.image" (list . $images.fetch true))
    "serving" (include "finetune-operator.image" (list . $images.serving false)))
  "imagePullPolicy" .Values.imagePullPolicy
  "imagePullSecrets" .Values.imagePullSecrets
  "namespaces" .Values.namespaces
  "gpuResource" .Values.gpuResource
  "gpuTypes" .Values.gpuTypes
  "currency" .Values.currency
  "serving" .Values.serving
  "preflight" .Values.preflight
  "verify" .Values.verify
  "retryBackoffSeconds" .Values.retryBackoffSeconds
  "progressSeconds" .Values.progressSeconds
  "drainSeconds" .Values.drainSeconds
  "labels" .Values.labels
  "logLevel" .Values.logLevel
-}}
{{- mustToPrettyJson $settings -}}
{{- end }}
