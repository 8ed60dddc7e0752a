{{/* Where a worker's model comes from. Most take a dict with `root` and `worker`, an entry of
`workers` over its defaults. */}}

{{/* The names of all models, each once, as JSON. Takes the root context. */}}
{{- define "stoker.model.names" -}}
{{- $names := list }}
{{- range $entry := .Values.workers }}
{{- $names = append $names (include "stoker.worker" (dict "root" $ "entry" $entry) | fromJson).model.name }}
{{- end }}
{{- uniq $names | toJson }}
{{- end }}

{{/* Refuses a source without what it needs. */}}
{{- define "stoker.model.check" -}}
{{- $model := .worker.model }}
{{- $at := printf "workers: %s: model" .worker.name }}
{{- if eq $model.source "persistentVolumeClaim" }}
{{- if not $model.persistentVolumeClaim.claimName }}
{{- fail (printf "%s.persistentVolumeClaim.claimName is empty: name the claim with the model" $at) }}
{{- end }}
{{- else if eq $model.source "hostPath" }}
{{- if not $model.hostPath.path }}
{{- fail (printf "%s.hostPath.path is empty: give the folder on the node" $at) }}
{{- end }}
{{- else if eq $model.source "image" }}
{{- if not $model.image.reference }}
{{- fail (printf "%s.image.reference is empty: name the image with the model" $at) }}
{{- end }}
{{- else if eq $model.source "download" }}
{{- if not $model.download.files }}
{{- fail (printf "%s.download.files is empty: list the files of the model" $at) }}
{{- end }}
{{- end }}
{{- if and $model.path (has $model.source (list "storyteller" "simulate")) }}
{{- fail (printf "%s.path is %s, but source %s has no volume; set another source" $at $model.path $model.source) }}
{{- end }}
{{- end }}

{{- define "stoker.model.arguments" -}}
{{- $model := .worker.model }}
{{- if eq $model.source "simulate" -}}
- {{ printf "--simulate=%s" $model.simulate | quote }}
{{- else if eq $model.source "storyteller" -}}
- --model=storyteller
{{- else -}}
- {{ printf "--model=/model/%s" $model.path | trimSuffix "/" | quote }}
{{- end }}
- {{ printf "--model-name=%s" $model.name | quote }}
{{- end }}

{{- define "stoker.model.hasVolume" -}}
{{- if not (has .worker.model.source (list "storyteller" "simulate")) }}true{{ end }}
{{- end }}

{{- define "stoker.model.volume" -}}
{{- $model := .worker.model -}}
- name: model
  {{- if eq $model.source "persistentVolumeClaim" }}
  persistentVolumeClaim:
    claimName: {{ $model.persistentVolumeClaim.claimName }}
    readOnly: true
  {{- else if eq $model.source "hostPath" }}
  hostPath:
    path: {{ $model.hostPath.path | quote }}
    type: Directory
  {{- else if eq $model.source "image" }}
  image:
    reference: {{ $model.image.reference | quote }}
    pullPolicy: {{ $model.image.pullPolicy }}
  {{- else }}
  {{- toYaml (default (dict "emptyDir" dict) $model.download.volume) | nindent 2 }}
  {{- end }}
{{- end }}

{{/* The init container that downloads a model. It verifies what is there and what it downloads, so
that an interrupted or altered download never reaches the worker. */}}
{{- define "stoker.model.download" -}}
{{- $download := .worker.model.download -}}
- name: download
  {{- include "stoker.image" (dict "root" .root "image" $download.image "foreign" true) | nindent 2 }}
  command: [sh, -euc]
  args:
    - |
      verified() { [ -f "$1" ] && echo "$2  $1" | sha256sum -c - >/dev/null 2>&1; }
      get() {
        if verified "$1" "$3"; then echo "$1: already there"; return; fi
        case $1 in */*) mkdir -p "${1%/*}" ;; esac
        # A name of its own, since another pod may write to the same volume.
        part=$1.$HOSTNAME.part
        echo "$1: downloading $2"
        if [ -n "${AUTHORIZATION:-}" ]; then
          printf 'header = "Authorization: %s"\n' "$AUTHORIZATION"
        fi | curl --config - --fail --silent --show-error --location --proto '=https' \
          --retry 5 --retry-connrefused --connect-timeout 30 --output "$part" "$2"
        if ! verified "$part" "$3"; then
          echo "$1: the checksum of $2 is $(sha256sum "$part" | cut -d ' ' -f 1), not $3" >&2
          exit 1
        fi
        mv "$part" "$1"
      }
      part=
      trap '[ -z "$part" ] || rm -f "$part"' EXIT
      cd /model
      {{- range $download.files }}
      get '{{ .path }}' '{{ .url }}' {{ .sha256 }}
      {{- end }}
  env:
    - name: HOSTNAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    {{- $secret := include "stoker.secret" (dict "root" .root "secret" $download.authorization "key" (printf "authorization-%s" .worker.name) "path" (printf "workers: %s: model.download.authorization" .worker.name)) | fromYaml }}
    {{- if $secret.name }}
    - name: AUTHORIZATION
      valueFrom:
        secretKeyRef:
          name: {{ $secret.name }}
          key: {{ $secret.key }}
    {{- end }}
    {{- with $download.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml $download.resources | nindent 4 }}
  {{- include "stoker.container" (dict "root" .root "config" .worker) | nindent 2 }}
  volumeMounts:
    - name: model
      mountPath: /model
    {{- with $download.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The file that a worker reads a chat template from, if the values have one. */}}
{{- define "stoker.chatTemplate.folder" }}/etc/stoker/chat-template{{ end }}
{{- define "stoker.chatTemplate.file" }}chat_template.jinja{{ end }}
