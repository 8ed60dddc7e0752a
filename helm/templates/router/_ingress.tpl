{{/* An Ingress to the port `port` of the routers' Service. Takes a dict with `root`, `config`, the values
of the Ingress, `name`, `paths` and `port`. Each port has one of its own, since annotations, which say
what a port speaks, are for all of an Ingress. */}}
{{- define "stoker.router.ingress" -}}
{{- $ingress := .config -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "stoker.metadata" (dict "root" .root "component" "router" "name" .name "annotations" $ingress.annotations) | nindent 2 }}
spec:
  {{- with $ingress.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with $ingress.tls }}
  tls:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- range default (list "") $ingress.hosts }}
    - {{ with . }}host: {{ . | quote }}
      {{ end }}http:
        paths:
          {{- range $.paths }}
          - path: {{ . }}
            pathType: Prefix
            backend:
              service:
                name: {{ include "stoker.component" (dict "root" $.root "component" "router") }}
                port:
                  name: {{ $.port }}
          {{- end }}
    {{- end }}
{{- end }}
