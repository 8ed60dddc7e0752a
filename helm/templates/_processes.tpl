{{/* Arguments and environment of Stoker's processes. */}}

{{/* Ports of containers. The admin listener is reached by a port forward only. */}}
{{- define "stoker.port.router" }}50051{{ end }}
{{- define "stoker.port.http" }}8000{{ end }}
{{- define "stoker.port.worker" }}50052{{ end }}
{{- define "stoker.port.admin" }}9051{{ end }}
{{- define "stoker.port.metrics" }}9090{{ end }}
{{- define "stoker.port.etcd" }}2379{{ end }}
{{- define "stoker.port.collector" }}4317{{ end }}

{{/* Flags from a map, sorted by name. Refuses those of the list `reserved`. */}}
{{- define "stoker.options" -}}
{{- range $name, $value := .options }}
{{- if has $name $.reserved }}
{{- fail (printf "%s.options.%s: the chart sets --%s itself; use the value for it" $.path $name $name) }}
{{- end }}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" $name) }}
{{- fail (printf "%s.options.%s: write the long name of a flag, without --" $.path $name) }}
{{- end }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- {{ printf "--%s" $name | quote }}
{{- end }}
{{- else if kindIs "string" $value }}
- {{ printf "--%s=%s" $name $value | quote }}
{{- else }}
- {{ printf "--%s=%s" $name (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Flags that routers and workers share. */}}
{{- define "stoker.commonArguments" -}}
- --metrics-listen=:{{ include "stoker.port.metrics" . }}
- --admin-listen=127.0.0.1:{{ include "stoker.port.admin" . }}
- --drain-timeout={{ int64 .config.drain.timeoutSeconds }}s
- {{ printf "--log=%s" .root.Values.logs.filter | quote }}
- --log-format={{ .root.Values.logs.format }}
{{- end }}

{{- define "stoker.etcd.arguments" -}}
{{- $etcd := .Values.etcd }}
{{- if eq $etcd.mode "bundled" -}}
- --etcd=http://{{ include "stoker.component" (dict "root" . "component" "etcd") }}:{{ include "stoker.port.etcd" . }}
{{- else }}
{{- if not $etcd.external.endpoints }}
{{- fail "etcd.external.endpoints is empty: give the URLs of your etcd, or another etcd.mode" }}
{{- end -}}
- {{ printf "--etcd=%s" (join "," $etcd.external.endpoints) | quote }}
{{- if $etcd.external.user }}
- {{ printf "--etcd-user=%s" $etcd.external.user | quote }}
- --etcd-password-file=/etc/stoker/etcd/password
{{- end }}
{{- if include "stoker.etcd.hasTls" . }}
{{- range $etcd.external.endpoints }}
{{- if not (hasPrefix "https://" .) }}
{{- fail (printf "etcd.external.tls is set, but the endpoint %s is not https" .) }}
{{- end }}
{{- end }}
{{- if $etcd.external.tls.caSecret }}
- --etcd-ca=/etc/stoker/etcd-tls/ca.crt
{{- end }}
{{- if $etcd.external.tls.clientSecret }}
- --etcd-cert=/etc/stoker/etcd-tls/tls.crt
- --etcd-key=/etc/stoker/etcd-tls/tls.key
{{- end }}
{{- end }}
{{- end }}
- {{ default (printf "/stoker/v1/workers/%s/%s/" .Release.Namespace (include "stoker.fullname" .)) $etcd.prefix | printf "--etcd-prefix=%s" | quote }}
{{- end }}

{{- define "stoker.etcd.hasPassword" -}}
{{- if and (eq .Values.etcd.mode "external") .Values.etcd.external.user }}true{{ end }}
{{- end }}

{{- define "stoker.etcd.hasTls" -}}
{{- $tls := .Values.etcd.external.tls }}
{{- if and (eq .Values.etcd.mode "external") (or $tls.caSecret $tls.clientSecret) }}true{{ end }}
{{- end }}

{{/* Volumes with etcd's password and certificates, which the processes read again when they change. */}}
{{- define "stoker.etcd.volumes" -}}
{{- if include "stoker.etcd.hasPassword" . }}
- name: etcd-password
  secret:
    {{- $secret := include "stoker.secret" (dict "root" . "secret" .Values.etcd.external.password "key" "etcd-password" "path" "etcd.external.password" "required" true) | fromYaml }}
    secretName: {{ $secret.name }}
    defaultMode: 0440
    items:
      - key: {{ $secret.key }}
        path: password
{{- end }}
{{- if include "stoker.etcd.hasTls" . }}
- name: etcd-tls
  projected:
    defaultMode: 0440
    sources:
      {{- with .Values.etcd.external.tls.caSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: ca.crt
              path: ca.crt
      {{- end }}
      {{- with .Values.etcd.external.tls.clientSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: tls.crt
              path: tls.crt
            - key: tls.key
              path: tls.key
      {{- end }}
{{- end }}
{{- end }}

{{- define "stoker.etcd.mounts" -}}
{{- if include "stoker.etcd.hasPassword" . }}
- name: etcd-password
  mountPath: /etc/stoker/etcd
  readOnly: true
{{- end }}
{{- if include "stoker.etcd.hasTls" . }}
- name: etcd-tls
  mountPath: /etc/stoker/etcd-tls
  readOnly: true
{{- end }}
{{- end }}

{{/* Name and key of the Secret that has a value: the release's own under `key`, or an existing one.
Empty if neither is given. */}}
{{- define "stoker.secret" -}}
{{- if and .secret.value .secret.existingSecret }}
{{- fail (printf "%s: give value or existingSecret, not both" .path) }}
{{- else if .secret.existingSecret -}}
name: {{ .secret.existingSecret }}
key: {{ .secret.key }}
{{- else if .secret.value -}}
name: {{ include "stoker.fullname" .root }}
key: {{ .key }}
{{- else if .required }}
{{- fail (printf "%s: give value, or existingSecret and key" .path) }}
{{- end }}
{{- end }}

{{/* Whether traces go to the collector of the chart. */}}
{{- define "stoker.otel.isOwn" -}}
{{- if and .Values.collector.enabled (not .Values.otel.endpoint) }}true{{ end }}
{{- end }}

{{/* Where traces are sent. Empty if they are not. */}}
{{- define "stoker.otel.endpoint" -}}
{{- if include "stoker.otel.isOwn" . -}}
http://{{ include "stoker.component" (dict "root" . "component" "collector") }}:{{ include "stoker.port.collector" . }}
{{- else -}}
{{ .Values.otel.endpoint }}
{{- end }}
{{- end }}

{{/* Environment of routers and workers. `service` is the name in traces. */}}
{{- define "stoker.environment" -}}
{{- $otel := .root.Values.otel -}}
{{- $endpoint := include "stoker.otel.endpoint" .root -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
# What a worker advertises through etcd.
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- if $endpoint }}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: grpc
- name: OTEL_SERVICE_NAME
  value: {{ .service | quote }}
- name: OTEL_TRACES_SAMPLER
  value: {{ $otel.sampler }}
{{- with $otel.samplerArgument }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ . | quote }}
{{- end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: "k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE),k8s.node.name=$(NODE_NAME)
    {{- range $key, $value := $otel.resourceAttributes }},{{ $key }}={{ $value }}{{ end }}"
{{- $secret := include "stoker.secret" (dict "root" .root "secret" $otel.headers "key" "otlp-headers" "path" "otel.headers") | fromYaml }}
{{- if $secret.name }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ $secret.name }}
      key: {{ $secret.key }}
{{- end }}
{{- end }}
{{- with .config.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
