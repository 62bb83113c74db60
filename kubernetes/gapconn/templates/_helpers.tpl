{{/* Name of all objects of one end: release, pair, end. */}}
{{- define "gapconn.name" -}}
{{- $prefix := .root.Release.Name | trunc 14 | trimSuffix "-" -}}
{{- printf "%s-%s-%s" $prefix .pair.name .end -}}
{{- end -}}

{{/* What tells one end from all others. */}}
{{- define "gapconn.selector" -}}
app.kubernetes.io/name: gapconn
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .end }}
gapconn/pair: {{ .pair.name }}
{{- end -}}

{{- define "gapconn.labels" -}}
{{ include "gapconn.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}
