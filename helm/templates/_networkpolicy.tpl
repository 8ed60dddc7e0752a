{{/* Rules that several network policies share. */}}

{{- define "stoker.networkPolicy.metrics" -}}
{{- with .Values.networkPolicy.metrics -}}
- ports:
    - port: {{ include "stoker.port.metrics" . }}
  from:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}

{{- define "stoker.networkPolicy.dns" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
  {{- with .Values.networkPolicy.dns }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Calls of these ports anywhere: where an address outside of the release is, is not known here. */}}
{{- define "stoker.networkPolicy.outside" -}}
{{- with . -}}
- ports:
    {{- range . }}
    - port: {{ . }}
    {{- end }}
{{- end }}
{{- end }}
