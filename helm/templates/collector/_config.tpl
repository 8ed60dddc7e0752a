{{/* The configuration of the collector: the chart's, or that of the values. */}}
{{- define "stoker.collector.config" -}}
{{- with .Values.collector.config }}
{{- toYaml . }}
{{- else }}
{{- .Files.Get "files/collector.yaml" | trim }}
{{- end }}
{{- end }}
