{{/* Names, labels and images. Most take a dict: `root` is the root context, `component` one of
router, worker, etcd, collector and test, `worker` the name of an entry of `workers`. */}}

{{- define "stoker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The beginning of the names of all objects. */}}
{{- define "stoker.fullname" -}}
{{- $name := include "stoker.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The name of a component's objects. A name that is cut could be that of another entry, so one
that is too long is refused. */}}
{{- define "stoker.component" -}}
{{- $name := printf "%s-%s" (include "stoker.fullname" .root) .component }}
{{- with .worker }}
{{- $name = printf "%s-%s" $name . }}
{{- end }}
{{- if gt (len $name) 63 }}
{{- fail (printf "%s: a name has at most 63 characters; shorten the name of the release or of the entry of workers" $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "stoker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "stoker.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* What selects the pods of a component, or all pods of the release without one. */}}
{{- define "stoker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "stoker.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .worker }}
stoker/worker: {{ . | quote }}
{{- end }}
{{- end }}

{{/* The metadata of an object. `config` has `labels` and `annotations`; `annotations` are those of
the object alone. */}}
{{- define "stoker.metadata" -}}
{{- $config := default dict .config }}
{{- $labels := merge dict (default dict $config.labels) .root.Values.commonLabels }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- $_ := set $labels "app.kubernetes.io/version" .root.Chart.AppVersion }}
{{- range $key, $value := include "stoker.selectorLabels" . | fromYaml }}
{{- $_ := set $labels $key $value }}
{{- end }}
{{- $annotations := merge dict (default dict .annotations) (default dict $config.annotations) .root.Values.commonAnnotations -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The metadata of a pod. `config` has `podLabels` and `podAnnotations`. No label has a version:
it would restart pods that do not change. */}}
{{- define "stoker.podMetadata" -}}
{{- $labels := merge dict .config.podLabels .root.Values.commonLabels }}
{{- range $key, $value := include "stoker.selectorLabels" . | fromYaml }}
{{- $_ := set $labels $key $value }}
{{- end }}
{{- $annotations := merge dict (default dict .annotations) .config.podAnnotations .root.Values.commonAnnotations }}
{{- if and (has .component (list "router" "worker")) (include "stoker.otel.endpoint" .root) }}
{{- with .root.Values.otel.headers.value }}
{{- /* A variable from a Secret is read at start only, so a change restarts the pods. */}}
{{- $_ := set $annotations "checksum/otlp-headers" (sha256sum .) }}
{{- end }}
{{- end -}}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* `image` and `imagePullPolicy` of a container. `image` is the component's; `foreign` says that
it is not one of Stoker's, so that it shares neither registry nor tag with them. */}}
{{- define "stoker.image" -}}
{{- $values := .root.Values }}
{{- $registry := .image.registry }}
{{- $tag := .image.tag }}
{{- if not .foreign }}
{{- $registry = coalesce $registry $values.image.registry $values.global.imageRegistry "" }}
{{- $tag = coalesce $tag $values.image.tag .root.Chart.AppVersion }}
{{- end }}
{{- $repository := .image.repository }}
{{- if $registry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" $registry) $repository }}
{{- end -}}
image: {{ empty .image.digest | ternary (printf "%s:%s" $repository $tag) (printf "%s@%s" $repository .image.digest) | quote }}
imagePullPolicy: {{ default $values.image.pullPolicy .image.pullPolicy }}
{{- end }}
