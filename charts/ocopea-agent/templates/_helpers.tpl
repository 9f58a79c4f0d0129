{{- define "agent.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- define "agent.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "agent.labels" -}}
{{ include "agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
{{- define "agent.image" -}}
{{- $repository := required "image.repository is missing: name the image that `make images` pushed" .Values.image.repository -}}
{{- if .Values.image.digest }}{{ $repository }}@{{ .Values.image.digest }}{{ else }}{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
{{- define "agent.save" -}}{{ include "agent.name" . }}-save{{- end }}
{{- define "agent.restore" -}}{{ include "agent.name" . }}-restore{{- end }}
{{- define "agent.trial" -}}{{ include "agent.name" . }}-trial{{- end }}
{{- define "agent.identity" -}}{{ include "agent.name" . }}-identity{{- end }}
{{- define "agent.joinSecret" -}}
{{- if .Values.join.existingSecret }}{{ .Values.join.existingSecret }}{{ else if .Values.join.token }}{{ include "agent.name" . }}-join{{ end }}
{{- end }}
