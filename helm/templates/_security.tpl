{{/* TLS and API keys: arguments, volumes and mounts of routers and workers, and what is refused. */}}

{{- define "stoker.tls.folder" }}/etc/stoker/tls{{ end }}
{{- define "stoker.tls.workerCaFolder" }}/etc/stoker/worker-ca{{ end }}
{{- define "stoker.tls.workerClientFolder" }}/etc/stoker/worker-client{{ end }}
{{- define "stoker.apiKeys.folder" }}/etc/stoker/keys{{ end }}

{{/* Refuses values of TLS and API keys that contradict each other. Takes the root context. */}}
{{- define "stoker.security.check" -}}
{{- $router := .Values.tls.router }}
{{- $worker := .Values.tls.worker }}
{{- $keys := .Values.apiKeys }}
{{- if and $router.requireClientCertificate (not $router.existingSecret) }}
{{- fail "tls.router.requireClientCertificate is true, but tls.router.existingSecret is empty: only TLS has client certificates" }}
{{- end }}
{{- if not $worker.existingSecret }}
{{- range $path, $value := dict "tls.worker.identities" $worker.identities "tls.router.identities" $router.identities "tls.router.clientSecret" $router.clientSecret }}
{{- if $value }}
{{- fail (printf "%s is set, but tls.worker.existingSecret is empty: there is no TLS between routers and workers" $path) }}
{{- end }}
{{- end }}
{{- else if not (or $router.clientSecret $router.existingSecret) }}
{{- fail "tls.worker.existingSecret is set, but routers have no certificate to show to workers: set tls.router.clientSecret or tls.router.existingSecret" }}
{{- end }}
{{- if not .Values.tls.allowPlaintext }}
{{- range $path, $name := dict "tls.router.existingSecret" $router.existingSecret "tls.worker.existingSecret" $worker.existingSecret }}
{{- if not $name }}
{{- fail (printf "tls.allowPlaintext is false, but %s is empty: name the Secret with the certificate" $path) }}
{{- end }}
{{- end }}
{{- end }}
{{- if not (or $keys.allowAnonymous $keys.existingSecret $router.requireClientCertificate) }}
{{- fail "apiKeys.allowAnonymous is false, but apiKeys.existingSecret is empty: name the Secret with keys.toml, or set tls.router.requireClientCertificate" }}
{{- end }}
{{- if and .Values.tls.metrics (not (and $router.existingSecret $worker.existingSecret)) }}
{{- fail "tls.metrics is true: metrics are served with the certificates of routers and workers; set tls.router.existingSecret and tls.worker.existingSecret" }}
{{- end }}
{{- end }}

{{/* Names of flags that the chart sets for routers and workers alike, as JSON. */}}
{{- define "stoker.reservedOptions" -}}
{{- list "listen" "metrics-listen" "admin-listen" "drain-timeout" "log" "log-format" "otlp-endpoint" "print-config" "etcd" "etcd-prefix" "etcd-user" "etcd-password" "etcd-password-file" "etcd-ca" "etcd-cert" "etcd-key" "tls-cert" "tls-key" "tls-client-ca" "metrics-tls" "allow-plaintext" | toJson }}
{{- end }}

{{/* A volume of a Secret, `secret`, or of its keys in `items` alone. It is mounted as a folder: a file
that is mounted by subPath would never change. */}}
{{- define "stoker.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    # Programs refuse keys that other users may read. The group is fsGroup.
    defaultMode: 0440
    {{- with .items }}
    items:
      {{- range . }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
    {{- end }}
{{- end }}

{{/* The number of routers at most, by which limits of tenants are divided. */}}
{{- define "stoker.router.maxReplicas" -}}
{{- $router := .Values.router }}
{{- max 1 (int64 ($router.autoscaling.enabled | ternary $router.autoscaling.maxReplicas $router.replicas)) }}
{{- end }}

{{- define "stoker.router.securityArguments" -}}
{{- $router := .Values.tls.router }}
{{- $worker := .Values.tls.worker }}
{{- if $router.existingSecret -}}
- --tls-cert={{ include "stoker.tls.folder" . }}/tls.crt
- --tls-key={{ include "stoker.tls.folder" . }}/tls.key
{{- if $router.requireClientCertificate }}
- --tls-client-ca={{ include "stoker.tls.folder" . }}/ca.crt
{{- end }}
{{- else -}}
# Clients' traffic is not encrypted here, since tls.router.existingSecret is empty.
- --allow-plaintext
{{- end }}
{{- if .Values.tls.metrics }}
- --metrics-tls
{{- end }}
{{- if $worker.existingSecret }}
- --worker-ca={{ include "stoker.tls.workerCaFolder" . }}/ca.crt
{{- with $worker.identities }}
- {{ printf "--worker-identity=%s" (join "," .) | quote }}
{{- end }}
{{- if $router.clientSecret }}
- --worker-client-cert={{ include "stoker.tls.workerClientFolder" . }}/tls.crt
- --worker-client-key={{ include "stoker.tls.workerClientFolder" . }}/tls.key
{{- end }}
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- --api-keys={{ include "stoker.apiKeys.folder" . }}/keys.toml
# Each router grants a tenant its share of the tenant's limits.
- --router-replicas={{ include "stoker.router.maxReplicas" . }}
{{- else if not $router.requireClientCertificate }}
# Requests need no API key, since apiKeys.existingSecret is empty.
- --allow-anonymous
{{- end }}
{{- end }}

{{- define "stoker.router.secretVolumes" -}}
{{- $router := .Values.tls.router }}
{{- $worker := .Values.tls.worker }}
{{- with $router.existingSecret }}
{{ include "stoker.secretVolume" (dict "name" "tls" "secret" .) }}
{{- end }}
{{- with $worker.existingSecret }}
# Without the private key of workers.
{{ include "stoker.secretVolume" (dict "name" "worker-ca" "secret" . "items" (list "ca.crt")) }}
{{- end }}
{{- with $router.clientSecret }}
{{ include "stoker.secretVolume" (dict "name" "worker-client" "secret" . "items" (list "tls.crt" "tls.key")) }}
{{- end }}
{{- with .Values.apiKeys.existingSecret }}
{{ include "stoker.secretVolume" (dict "name" "api-keys" "secret" . "items" (list "keys.toml")) }}
{{- end }}
{{ include "stoker.etcd.volumes" . }}
{{- end }}

{{- define "stoker.router.secretMounts" -}}
{{- $router := .Values.tls.router }}
{{- if $router.existingSecret }}
- name: tls
  mountPath: {{ include "stoker.tls.folder" . }}
  readOnly: true
{{- end }}
{{- if .Values.tls.worker.existingSecret }}
- name: worker-ca
  mountPath: {{ include "stoker.tls.workerCaFolder" . }}
  readOnly: true
{{- end }}
{{- if $router.clientSecret }}
- name: worker-client
  mountPath: {{ include "stoker.tls.workerClientFolder" . }}
  readOnly: true
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- name: api-keys
  mountPath: {{ include "stoker.apiKeys.folder" . }}
  readOnly: true
{{- end }}
{{ include "stoker.etcd.mounts" . }}
{{- end }}

{{- define "stoker.worker.securityArguments" -}}
{{- if .Values.tls.worker.existingSecret -}}
# Routers identify themselves by certificates, so only they can set routing fields.
- --tls-cert={{ include "stoker.tls.folder" . }}/tls.crt
- --tls-key={{ include "stoker.tls.folder" . }}/tls.key
- --tls-client-ca={{ include "stoker.tls.folder" . }}/ca.crt
{{- with .Values.tls.router.identities }}
- {{ printf "--router-identity=%s" (join "," .) | quote }}
{{- end }}
{{- else -}}
# Routers are on other hosts. The NetworkPolicy lets only them reach this port.
- --accept-routing=any
# Their traffic is not encrypted here, since tls.worker.existingSecret is empty.
- --allow-plaintext
{{- end }}
{{- if .Values.tls.metrics }}
- --metrics-tls
{{- end }}
{{- end }}

{{- define "stoker.worker.secretVolumes" -}}
{{- with .Values.tls.worker.existingSecret }}
{{ include "stoker.secretVolume" (dict "name" "tls" "secret" .) }}
{{- end }}
{{ include "stoker.etcd.volumes" . }}
{{- end }}

{{- define "stoker.worker.secretMounts" -}}
{{- if .Values.tls.worker.existingSecret }}
- name: tls
  mountPath: {{ include "stoker.tls.folder" . }}
  readOnly: true
{{- end }}
{{ include "stoker.etcd.mounts" . }}
{{- end }}

{{/* The HTTP request of a probe for `path`. The kubelet verifies no certificate. */}}
{{- define "stoker.probe" -}}
httpGet:
  path: {{ .path }}
  port: metrics
  {{- if .root.Values.tls.metrics }}
  scheme: HTTPS
  {{- end }}
{{- end }}

{{/* How Prometheus scrapes: a part of an endpoint of a PodMonitor or ServiceMonitor. */}}
{{- define "stoker.scrapeTls" -}}
{{- if .Values.tls.metrics }}
{{- if not .Values.metrics.tlsConfig }}
{{- fail "metrics.tlsConfig is empty, but tls.metrics is true: say how Prometheus verifies certificates, by ca and serverName, or set insecureSkipVerify" }}
{{- end -}}
scheme: https
tlsConfig:
  {{- toYaml .Values.metrics.tlsConfig | nindent 2 }}
{{- end }}
{{- end }}

{{/* Whether there is a pod of `helm test`: it needs what routers demand of clients. */}}
{{- define "stoker.test.isCreated" -}}
{{- $test := .Values.test }}
{{- $hasKey := or (not .Values.apiKeys.existingSecret) $test.apiKey.value $test.apiKey.existingSecret }}
{{- $hasCertificate := or (not .Values.tls.router.requireClientCertificate) $test.clientSecret }}
{{- if and $test.enabled $hasKey $hasCertificate }}true{{ end }}
{{- end }}

{{/* Name and key of the Secret with the API key of `helm test`. */}}
{{- define "stoker.test.apiKey" -}}
{{- if .Values.apiKeys.existingSecret }}
{{- include "stoker.secret" (dict "root" . "secret" .Values.test.apiKey "key" "test-api-key" "path" "test.apiKey") }}
{{- end }}
{{- end }}
