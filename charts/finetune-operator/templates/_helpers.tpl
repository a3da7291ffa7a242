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
  verbs: [get, list, watch]
- apiGroups: [llmonray.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get, list, watch, create, delete]
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
