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
  verbs: [get, list, watch, create, delete] # the pod that fetches dataset.uri and model.uri
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, create] # list: one request for all the jobs of a namespace that wait for claims
- apiGroups: [""]
  resources: [configmaps]
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
{{- $others := list "enabled" "maxWorkers" "maxGPUs" "namespaces" }}
{{- $policy := dict }}
{{- range $key, $value := .Values.policy }}
{{- if not (has $key $others) }}{{ $_ := set $policy $key $value }}{{ end }}
{{- end }}
{{- $namespaces := dict }}
{{- range $namespace, $limits := .Values.policy.namespaces }}
{{- $here := dict }}
{{- range $key, $value := $limits }}
{{- if not (has $key $others) }}{{ $_ := set $here $key $value }}{{ end }}
{{- end }}
{{- if $here }}{{ $_ := set $namespaces $namespace $here }}{{ end }}
{{- end }}
{{- set $policy "namespaces" $namespaces | toJson }}
{{- end }}

{{- /* Of (names, patterns, what "*" includes): those of the names that no pattern allows, as a CEL expression. */ -}}
{{- define "finetune-operator.refused" -}}
{{ index . 0 }}.filter(name, !{{ index . 1 }}.exists(p, p == "*" ? {{ index . 2 }} : p.endsWith("*") ? name.startsWith(p.substring(0, size(p) - 1)) : name == p))
{{- end }}

{{- /* What the head and the workers may say about pods, as (key of the policy → field, names in it, what "*" includes). */ -}}
{{- define "finetune-operator.podLimits" -}}
allowedVariables:
  field: env
  names: '(%[1]s.?env.orValue(null) == null ? dyn([]) : %[1]s.env).map(item, item.name)'
  all: "true"
allowedPriorityClasses:
  field: priorityClassName
  names: '[%[1]s.?priorityClassName.orValue(null)].filter(name, name != null)'
  all: '!name.startsWith("system-")'
allowedTolerations:
  field: tolerations
  names: '(%[1]s.?tolerations.orValue(null) == null ? dyn([]) : %[1]s.tolerations).map(item, item.?key.orValue(null) == null ? dyn("") : item.key)'
  all: >-
    name != "" && !name.startsWith("node-role.kubernetes.io/") && !name.startsWith("node.kubernetes.io/") &&
    !name.startsWith("node.cloudprovider.kubernetes.io/")
allowedAnnotations:
  field: annotations
  names: '(%[1]s.?annotations.orValue(null) == null ? dyn({}) : %[1]s.annotations).map(key, key)'
  all: "true"
{{- end }}

{{- /* The Secret with the master key, unless existingSecret names one: the operator makes it. */ -}}
{{- define "finetune-operator.keySecret" -}}
{{ include "finetune-operator.name" . }}-keys
{{- end }}
