{{/* The value of --model-alias. Refuses what no router would start with, and models that no worker has.
With an etcd, workers may come from elsewhere too. */}}
{{- define "stoker.router.modelAlias" -}}
{{- $aliases := .Values.router.modelAliases }}
{{- $models := include "stoker.model.names" . | fromJsonArray }}
{{- $all := list }}
{{- range $alias, $model := $aliases }}
{{- if hasKey $aliases $model }}
{{- fail (printf "router.modelAliases.%s: %s is an alias itself; name the model" $alias $model) }}
{{- end }}
{{- if and (eq $.Values.etcd.mode "none") (not (has $model $models)) }}
{{- fail (printf "router.modelAliases.%s: no entry of workers has the model %s, only %s" $alias $model (join ", " $models)) }}
{{- end }}
{{- $all = append $all (printf "%s=%s" $alias $model) }}
{{- end }}
{{- join "," $all }}
{{- end }}
