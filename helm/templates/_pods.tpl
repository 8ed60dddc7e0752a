{{/* What pods have in common. All take a dict with `root`, `component` and `config`, the values of
the component. */}}

{{/* Merges `with` over `to`, in place. Unlike `mergeOverwrite` it takes empty values too. */}}
{{- define "stoker.override" -}}
{{- $to := .to }}
{{- range $key, $value := .with }}
{{- if and (kindIs "map" $value) (kindIs "map" (get $to $key)) }}
{{- include "stoker.override" (dict "to" (get $to $key) "with" $value) }}
{{- else }}
{{- $_ := set $to $key $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* An entry of `workers` over `workerDefaults`, as JSON. */}}
{{- define "stoker.worker" -}}
{{- $defaults := .root.Values.workerDefaults }}
{{- $worker := deepCopy $defaults }}
{{- include "stoker.override" (dict "to" $worker "with" (deepCopy .entry)) }}
{{- if eq $worker.tolerationsPolicy "append" }}
{{- $_ := set $worker "tolerations" (concat $defaults.tolerations (default list .entry.tolerations)) }}
{{- end }}
{{- if and (eq $worker.nodeSelectorPolicy "override") (hasKey .entry "nodeSelector") }}
{{- $_ := set $worker "nodeSelector" .entry.nodeSelector }}
{{- end }}
{{- if not $worker.model.name }}
{{- $_ := set $worker.model "name" $worker.name }}
{{- end }}
{{- if not $worker.image.repository }}
{{- $_ := set $worker.image "repository" ($worker.gpu.enabled | ternary "stoker-worker-cuda" "stoker-worker") }}
{{- end }}
{{- if and $worker.gpu.enabled $worker.gpu.runtimeClassName }}
{{- $_ := set $worker "runtimeClassName" $worker.gpu.runtimeClassName }}
{{- end }}
{{- toJson $worker }}
{{- end }}

{{/* The fields of a pod's specification that do not depend on its containers. */}}
{{- define "stoker.podSpec" -}}
{{- $config := .config }}
{{- $selector := include "stoker.selectorLabels" . | fromYaml -}}
serviceAccountName: {{ include "stoker.serviceAccountName" .root }}
automountServiceAccountToken: false
# Variables of Services would begin like those of Stoker's options.
enableServiceLinks: false
{{- with coalesce .root.Values.image.pullSecrets .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  {{- if kindIs "map" . }}
  - name: {{ .name }}
  {{- else }}
  - name: {{ . }}
  {{- end }}
  {{- end }}
{{- end }}
{{- $security := deepCopy .root.Values.podSecurityContext }}
{{- include "stoker.override" (dict "to" $security "with" (default dict $config.podSecurityContext)) }}
securityContext:
  {{- toYaml $security | nindent 2 }}
{{- with $config.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $config.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $config.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $config.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := default "none" $config.podAntiAffinity }}
{{- if $config.affinity }}
affinity:
  {{- toYaml $config.affinity | nindent 2 }}
{{- else if eq $spread "preferred" }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- toYaml $selector | nindent 14 }}
{{- else if eq $spread "required" }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- toYaml $selector | nindent 12 }}
{{- end }}
{{- with $config.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $constraint := hasKey . "labelSelector" | ternary . (merge (dict "labelSelector" (dict "matchLabels" $selector)) .) }}
  - {{- toYaml $constraint | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The fields of a container that all containers have. */}}
{{- define "stoker.container" -}}
{{- $security := deepCopy .root.Values.securityContext }}
{{- include "stoker.override" (dict "to" $security "with" (default dict .config.securityContext)) -}}
securityContext:
  {{- toYaml $security | nindent 2 }}
# The last lines of the log say why a process ended, and what to do about it.
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* Ends a pod: it leaves its Services, then its process drains. */}}
{{- define "stoker.lifecycle" -}}
{{- with int64 .config.drain.preStopSeconds -}}
lifecycle:
  preStop:
    sleep:
      seconds: {{ . }}
{{- end }}
{{- end }}

{{- define "stoker.terminationGracePeriodSeconds" -}}
{{- $drain := .config.drain }}
{{- $least := add (int64 $drain.preStopSeconds) (int64 $drain.timeoutSeconds) }}
{{- if lt (int64 $drain.terminationGracePeriodSeconds) $least }}
{{- fail (printf "%s.drain.terminationGracePeriodSeconds is %d: it must be at least preStopSeconds and timeoutSeconds together, %d" .path (int64 $drain.terminationGracePeriodSeconds) $least) }}
{{- end }}
{{- int64 $drain.terminationGracePeriodSeconds }}
{{- end }}

{{/* How a Deployment replaces pods. With Recreate nothing of the default's rollingUpdate may stay. */}}
{{- define "stoker.strategy" -}}
{{- if eq (default "RollingUpdate" .type) "RollingUpdate" -}}
{{- toYaml . }}
{{- else -}}
type: {{ .type }}
{{- end }}
{{- end }}

{{/* The budget of a component. */}}
{{- define "stoker.podDisruptionBudget" -}}
{{- $budget := .config.podDisruptionBudget -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "stoker.metadata" . | nindent 2 }}
spec:
  {{- if kindIs "invalid" $budget.minAvailable }}
  maxUnavailable: {{ $budget.maxUnavailable }}
  {{- else }}
  minAvailable: {{ $budget.minAvailable }}
  {{- end }}
  unhealthyPodEvictionPolicy: {{ $budget.unhealthyPodEvictionPolicy }}
  selector:
    matchLabels:
      {{- include "stoker.selectorLabels" . | nindent 6 }}
{{- end }}
