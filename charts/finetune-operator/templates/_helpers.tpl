{{- define "finetune-operator.name" -}}
{{- $name := ternary .Release.Name (printf "%s-finetune-operator" .Release.Name) (contains "finetune-operator" .Release.Name) }}
{{- $name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "finetune-operator.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.name" .) }}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What the operator may do in a namespace that it watches: nothing more, see ARCHITECTURE.md. */ -}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [llmonray.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch, delete] # delete: ttlSecondsAfterFinished
- apiGroups: [llmonray.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get, list, watch, create, delete, patch] # patch: labels that somebody has removed
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list] # why a job is queued
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims, configmaps]
  verbs: [get, create]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}

{{- /* Cluster-scoped: two releases of one name may live in two namespaces. */ -}}
{{- define "finetune-operator.policy" -}}
{{ include "finetune-operator.name" . }}.{{ .Release.Namespace }}
{{- end }}

{{- /* Of (policy, key): a limit as a CEL expression, the namespace's own or the default; "unlimited" is -1. */ -}}
{{- define "finetune-operator.limit" -}}
{{- $policy := index . 0 }}
{{- $key := index . 1 }}
{{- $all := dict "" (get $policy $key) }}
{{- range $namespace, $limits := $policy.namespaces }}
{{- if hasKey $limits $key }}{{ $_ := set $all $namespace (get $limits $key) }}{{ end }}
{{- end }}
{{- range $namespace, $value := $all }}
{{- if eq (toString $value) "unlimited" }}{{ $_ := set $all $namespace -1 }}{{ end }}
{{- end }}
{{- $own := omit $all "" }}
{{- if $own }}{{ toJson $own }}[?request.namespace].orValue({{ end }}{{ get $all "" | toJson }}{{ if $own }}){{ end }}
{{- end }}

{{- /* The limits that the operator holds by itself, as JSON: it also meets jobs that are older than the policy. */ -}}
{{- define "finetune-operator.limits" -}}
{{- $policy := pick .Values.policy "allowRemoteCode" "allowedImagePrefixes" }}
{{- $namespaces := dict }}
{{- range $namespace, $limits := .Values.policy.namespaces }}
{{- with pick $limits "allowRemoteCode" "allowedImagePrefixes" }}{{ $_ := set $namespaces $namespace . }}{{ end }}
{{- end }}
{{- set $policy "namespaces" $namespaces | toJson }}
{{- end }}
