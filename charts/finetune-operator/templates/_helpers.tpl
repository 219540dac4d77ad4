{{/* The name of all objects of this release; short enough for a suffix. */}}
{{- define "finetune-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* The name of cluster-scoped objects: with the namespace, so that two releases do not collide. */}}
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
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The namespaces of the pods of jobs, for objects that select them across namespaces. */}}
{{- define "finetune-operator.namespaceselector" -}}
{{- if .Values.namespaces -}}
matchNames: {{ toJson .Values.namespaces }}
{{- else -}}
any: true
{{- end -}}
{{- end }}

{{/* An egress rule of a NetworkPolicy: TCP to `ports` of `peers`; of any peer if the list is empty. */}}
{{- define "finetune-operator.egress" -}}
- ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .peers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "finetune-operator.dns" -}}
- ports:
    {{- range .ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .peers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* An ingress rule: TCP to `port` from `peers`, from any peer if the list is empty; `also` are additional peers. */}}
{{- define "finetune-operator.ingress" -}}
- ports:
    - {protocol: TCP, port: {{ .port }}}
  {{- if .peers }}
  from:
    {{- toYaml .peers | nindent 4 }}
    {{- with .also }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* An image reference: list of context, image and whether it is prefixed with images.registry. */}}
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

{{/* The operator's settings, /etc/finetune-operator/settings.json. */}}
{{- define "finetune-operator.settings" -}}
{{- $images := .Values.images -}}
{{- $settings := dict
  "images" (dict
    "trainer" (include "finetune-operator.image" (list . $images.trainer true))
    "fetch" (include "finetune-operator.image" (list . $images.fetch true))
    "serving" (include "finetune-operator.image" (list . $images.serving false)))
  "indexUrl" (printf "http://%s-index.%s.svc:9500" (include "finetune-operator.fullname" .) .Release.Namespace)
  "imagePullPolicy" .Values.imagePullPolicy
  "imagePullSecrets" .Values.imagePullSecrets
  "imagePullSecretsByNamespace" (.Values.imagePullSecretsByNamespace | default dict)
  "securityContext" .Values.securityContext
  "namespaces" .Values.namespaces
  "gpuResource" .Values.gpuResource
  "gpuTypes" (.Values.gpuTypes | default dict)
  "currency" .Values.currency
  "pods" (.Values.pods | default dict)
  "serving" (.Values.serving | default dict)
  "preflight" (.Values.preflight | default dict)
  "training" (.Values.training | default dict)
  "verify" (.Values.verify | default dict)
  "caBundle" (ternary .Values.caBundle nil (ne .Values.caBundle.configMap ""))
  "modelCache" (dict
    "claimName" (.Values.modelCache.claimName | default nil)
    "claimNameByNamespace" (.Values.modelCache.claimNameByNamespace | default dict)
    "size" (.Values.modelCache.size | default nil))
  "kueue" .Values.kueue
  "ingress" .Values.ingress
  "gatewayApi" (dict
    "enabled" .Values.gatewayAPI.enabled
    "gateway" (dict
      "name" .Values.gatewayAPI.gateway.name
      "namespace" .Values.gatewayAPI.gateway.namespace
      "sectionName" (.Values.gatewayAPI.gateway.sectionName | default nil))
    "inference" .Values.gatewayAPI.inference)
  "retryBackoffSeconds" .Values.retryBackoffSeconds
  "progressSeconds" .Values.progressSeconds
  "drainSeconds" .Values.drainSeconds
  "stalledAfterSeconds" .Values.stalledAfterSeconds
  "labels" .Values.labels
  "logLevel" .Values.logLevel
-}}
{{- mustToPrettyJson $settings -}}
{{- end }}

{{/* Labels of pods beside the operator (list of context and what they are): another name, so that neither the Service nor the
Deployment takes them for theirs. */}}
{{- define "finetune-operator.sidelabels" -}}
{{- $context := index . 0 -}}
{{- $what := index . 1 -}}
app.kubernetes.io/name: {{ $context.Chart.Name }}-{{ $what }}
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/component: {{ $what }}
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
{{- with $context.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The securityContext of the chart's own pods. */}}
{{- define "finetune-operator.podsecurity" -}}
{{- range $name, $value := .Values.securityContext }}
{{- $name }}: {{ toJson $value }}
{{ end -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "finetune-operator.testlabels" -}}
{{ include "finetune-operator.sidelabels" (list . "test") }}
{{- end }}

{{- define "finetune-operator.upgradehook" -}}
helm.sh/hook: post-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end }}

{{- define "finetune-operator.testhook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
