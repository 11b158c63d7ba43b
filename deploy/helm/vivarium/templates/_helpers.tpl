{{/* The name of everything in a release; cut to what a label may hold, with room for "-pods-0". */}}
{{- define "vivarium.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "vivarium.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "vivarium.labels" -}}
{{ include "vivarium.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The config file. Numbers of values.yaml may come as floats: no setting of the server is one. */}}
{{- define "vivarium.config" -}}
store = "/var/lib/vivarium/store"
listen = "0.0.0.0:50051"
metrics-listen = "0.0.0.0:9464"
insecure = true
{{- range $name, $value := .Values.config }}
{{- if kindIs "string" $value }}
{{ $name }} = {{ $value | quote }}
{{- else if kindIs "bool" $value }}
{{ $name }} = {{ $value }}
{{- else }}
{{ $name }} = {{ int64 $value }}
{{- end }}
{{- end }}
{{- end -}}
