{{- define "agentcore.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "agentcore.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | replace "." "-" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The Service of requests that carry a session. A release's name has at most 53 characters, so what is cut is not it. */}}
{{- define "agentcore.sessionsName" -}}
{{- printf "%s-sessions" (include "agentcore.fullname" . | trunc 54 | trimSuffix "-") }}
{{- end }}

{{- define "agentcore.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "agentcore.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "agentcore.tag" -}}
{{- default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "agentcore.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (include "agentcore.tag" .) }}
{{- end }}
{{- end }}

{{/* The agent's version, in what a label may hold. */}}
{{- define "agentcore.version" -}}
{{- $version := default (include "agentcore.tag" .) .Values.agent.version }}
{{- regexReplaceAll "[^A-Za-z0-9._-]" $version "-" | trunc 63 | trimAll "-._" }}
{{- end }}

{{/* What never changes, since a Deployment's selector cannot. */}}
{{- define "agentcore.selector" -}}
app.kubernetes.io/name: {{ include "agentcore.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end }}

{{/* Labels of an object: dict "root" $ "component" "server". */}}
{{- define "agentcore.labels" -}}
{{- $own := dict
  "app.kubernetes.io/name" (include "agentcore.name" .root)
  "app.kubernetes.io/instance" .root.Release.Name
  "app.kubernetes.io/component" (default "server" .component)
  "app.kubernetes.io/version" (include "agentcore.version" .root)
  "app.kubernetes.io/managed-by" .root.Release.Service
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- mergeOverwrite (dict) (default (dict) .extra) .root.Values.commonLabels $own | toYaml }}
{{- end }}

{{/* Labels of the pods: without the chart's version, since a newer chart alone is no reason to end running invocations. */}}
{{- define "agentcore.podLabels" -}}
{{- $own := include "agentcore.selector" . | fromYaml }}
{{- $_ := set $own "app.kubernetes.io/version" (include "agentcore.version" .) }}
{{- mergeOverwrite (dict) .Values.podLabels .Values.commonLabels $own | toYaml }}
{{- end }}

{{/* What depends on the protocol. Where AgentCore Runtime expects it, */}}
{{- define "agentcore.port" -}}
{{- get (dict "a2a" "9000" "mcp" "8000") .Values.agent.protocol | default "8080" }}
{{- end }}

{{- define "agentcore.servicePort" -}}
{{- int64 .Values.service.port | default (include "agentcore.port" .) }}
{{- end }}

{{/* which header names the session, */}}
{{- define "agentcore.sessionHeader" -}}
{{- $own := ternary "Mcp-Session-Id" "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id" (eq .Values.agent.protocol "mcp") }}
{{- .Values.sessionAffinity.header | default $own }}
{{- end }}

{{/* which paths lead in: a list of dicts. A2A's own is the root, and alone: what is below it stays inside. */}}
{{- define "agentcore.publicPaths" -}}
{{- $own := get (dict "a2a" (list "/" "/.well-known/agent-card.json" "/ping") "mcp" (list "/mcp" "/ping")) .Values.agent.protocol }}
{{- $paths := list }}
{{- range .Values.publicPaths | default $own | default (list "/invocations" "/ws" "/ping") }}
{{- $paths = append $paths (dict "path" . "exact" (and (eq . "/") (empty $.Values.publicPaths))) }}
{{- end }}
{{- toYaml $paths }}
{{- end }}

{{/* and what a call is. */}}
{{- define "agentcore.callPath" -}}
{{- get (dict "a2a" "/" "mcp" "/mcp") .Values.agent.protocol | default "/invocations" }}
{{- end }}

{{- define "agentcore.callPayload" -}}
{{- $message := dict "kind" "message" "messageId" "helm-test" "role" "user" "parts" (list (dict "kind" "text" "text" "hello")) }}
{{- $client := dict "protocolVersion" "2025-06-18" "capabilities" (dict) "clientInfo" (dict "name" "helm-test" "version" "1") }}
{{- $own := dict
  "a2a" (dict "jsonrpc" "2.0" "id" 1 "method" "message/send" "params" (dict "message" $message))
  "mcp" (dict "jsonrpc" "2.0" "id" 1 "method" "initialize" "params" $client)
  "ag-ui" (dict "threadId" "helm-test" "runId" "helm-test" "state" (dict) "tools" (list) "context" (list) "forwardedProps" (dict) "messages" (list (dict "id" "1" "role" "user" "content" "hello"))) }}
{{- get $own .Values.agent.protocol | default .Values.helmTest.payload | toJson }}
{{- end }}

{{/* A number as people write it: large ones come from values as floats. */}}
{{- define "agentcore.number" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "agentcore.terminationSeconds" -}}
{{- add (int64 .Values.shutdown.delaySeconds) (int64 .Values.shutdown.graceSeconds) (int64 .Values.shutdown.marginSeconds) }}
{{- end }}

{{/* Whether callers need a token or a key: not empty where they do. */}}
{{- define "agentcore.authenticates" -}}
{{- if or .Values.auth.jwt.discoveryUrl .Values.auth.apiKeysSecret.name }}true{{ end }}
{{- end }}

{{/* Where the API keys are mounted: a directory, since a file that is mounted by `subPath` is never renewed. */}}
{{- define "agentcore.apiKeysDirectory" -}}
/etc/agentcore/api-keys
{{- end }}

{{/* The start command: with several workers one whose main process passes SIGTERM on to them, as `litestar run` does not. */}}
{{- define "agentcore.command" -}}
{{- if .Values.command }}
{{- toYaml .Values.command }}
{{- else if gt (int64 .Values.agent.workers) 1 }}
{{- if .Values.args }}
{{- fail "args: with agent.workers above 1 the chart has a start command of its own, which takes none; set command as well" }}
{{- end }}
- python
- -c
- from os import environ; from app import app; app.run(port={{ include "agentcore.port" . }}, host="0.0.0.0", workers=int(environ["WEB_CONCURRENCY"]))
{{- else if and (ne (include "agentcore.port" .) "8080") (not .Values.args) }}
{{- toYaml (list "litestar" "run" "--host" "0.0.0.0" "--port" (include "agentcore.port" .)) }}
{{- end }}
{{- end }}

{{/* One list of variables, each named once. What is referred to as $(NAME) comes first. */}}
{{- define "agentcore.env" -}}
{{- $env := list }}
{{- range $name, $path := dict "K8S_NAMESPACE" "metadata.namespace" "K8S_NODE" "spec.nodeName" "K8S_POD" "metadata.name" "K8S_POD_UID" "metadata.uid" }}
{{- $env = append $env (dict "name" $name "valueFrom" (dict "fieldRef" (dict "apiVersion" "v1" "fieldPath" $path))) }}
{{- end }}
{{- with .Values.agent.name }}
{{- $env = append $env (dict "name" "AGENT_NAME" "value" .) }}
{{- end }}
{{- with .Values.agent.protocol }}
{{- $env = append $env (dict "name" "AGENTCORE_PROTOCOL" "value" .) }}
{{- end }}
{{- with .Values.agent.workers }}
{{- $env = append $env (dict "name" "WEB_CONCURRENCY" "value" (include "agentcore.number" .)) }}
{{- end }}
{{- range $name, $value := .Values.agent.settings }}
{{- $env = append $env (dict "name" (printf "AGENTCORE_%s" (snakecase $name | upper)) "value" (include "agentcore.number" $value)) }}
{{- end }}
{{- with .Values.auth }}
{{- $values := dict
  "JWT_DISCOVERY_URL" .jwt.discoveryUrl
  "JWT_ALLOWED_AUDIENCE" (join "," .jwt.allowedAudience)
  "JWT_ALLOWED_CLIENTS" (join "," .jwt.allowedClients)
  "JWT_ALLOWED_SCOPES" (join "," .jwt.allowedScopes)
  "API_KEYS_FILE" (ternary (printf "%s/keys" (include "agentcore.apiKeysDirectory" $)) "" (not (empty .apiKeysSecret.name)))
  "AUTH_METRICS" (ternary "true" "" .metrics)
  "AUTH_SCHEMA" (ternary "true" "" .schema) }}
{{- range $name, $value := $values }}
{{- if $value }}
{{- $env = append $env (dict "name" (printf "AGENTCORE_%s" $name) "value" $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- $env = append $env (dict "name" "AGENTCORE_SHUTDOWN_DELAY_SECONDS" "value" (include "agentcore.number" .Values.shutdown.delaySeconds)) }}
{{- $env = append $env (dict "name" "AGENTCORE_SHUTDOWN_GRACE_SECONDS" "value" (include "agentcore.number" .Values.shutdown.graceSeconds)) }}
{{- $env = append $env (dict "name" "OTEL_SERVICE_NAME" "value" (default (include "agentcore.fullname" .) .Values.agent.name)) }}
{{- $attributes := list
  (printf "service.version=%s" (include "agentcore.version" .))
  "service.instance.id=$(K8S_POD_UID)"
  "k8s.namespace.name=$(K8S_NAMESPACE)"
  "k8s.node.name=$(K8S_NODE)"
  "k8s.pod.name=$(K8S_POD)"
  "k8s.pod.uid=$(K8S_POD_UID)"
  (printf "k8s.deployment.name=%s" (include "agentcore.fullname" .)) }}
{{- range $name, $value := .Values.otel.resourceAttributes }}
{{- $attributes = append $attributes (printf "%s=%s" $name (urlquery $value | replace "+" "%20")) }}
{{- end }}
{{- $env = append $env (dict "name" "OTEL_RESOURCE_ATTRIBUTES" "value" (join "," $attributes)) }}
{{- with .Values.otel }}
{{- if .endpoint }}
{{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_ENDPOINT" "value" .endpoint) }}
{{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_PROTOCOL" "value" .protocol) }}
{{- end }}
{{- if .headersSecret.name }}
{{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_HEADERS" "valueFrom" (dict "secretKeyRef" (dict "name" .headersSecret.name "key" .headersSecret.key))) }}
{{- end }}
{{- with .sampler }}
{{- $env = append $env (dict "name" "OTEL_TRACES_SAMPLER" "value" .) }}
{{- end }}
{{- with .samplerArg }}
{{- $env = append $env (dict "name" "OTEL_TRACES_SAMPLER_ARG" "value" (toString .)) }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.env }}
{{- $env = append $env (dict "name" $name "value" (include "agentcore.number" $value)) }}
{{- end }}
{{- range $name, $reference := .Values.secretEnv }}
{{- $key := dict "name" $reference.secret "key" $reference.key }}
{{- if $reference.optional }}
{{- $_ := set $key "optional" true }}
{{- end }}
{{- $env = append $env (dict "name" $name "valueFrom" (dict "secretKeyRef" $key)) }}
{{- end }}
{{- $env = concat $env .Values.extraEnv }}
{{- $seen := dict }}
{{- range $env }}
{{- if hasKey $seen .name }}
{{- fail (printf "the environment variable %s is set twice: by the chart's own values, env, secretEnv or extraEnv; say it in one place" .name) }}
{{- end }}
{{- $_ := set $seen .name true }}
{{- end }}
{{- toYaml $env }}
{{- end }}

{{/* The files that take the place of /app. */}}
{{- define "agentcore.sources" -}}
{{- if .Values.agent.source }}
{{- if hasKey .Values.agent.files "app.py" }}
{{- fail "agent.files: app.py is agent.source already" }}
{{- end }}
{{- $sources := merge (dict "app.py" .Values.agent.source) .Values.agent.files }}
{{- $size := 0 }}
{{- range $sources }}{{ $size = add $size (len .) }}{{ end }}
{{- if gt (int $size) 1000000 }}
{{- fail (printf "agent.source and agent.files are %d bytes together, and a ConfigMap holds one mebibyte: build an image" (int $size)) }}
{{- end }}
{{- toYaml $sources }}
{{- else if .Values.agent.files }}
{{- fail "agent.files needs agent.source: the files stand beside it" }}
{{- end }}
{{- end }}

{{/* Another name for other files, so that a change rolls the pods. */}}
{{- define "agentcore.sourceName" -}}
{{- printf "%s-source-%s" (include "agentcore.fullname" .) (include "agentcore.sources" . | sha256sum | trunc 10) }}
{{- end }}

{{/* Containers that the values bring, with the chart's security context where they have none. */}}
{{- define "agentcore.containers" -}}
{{- $containers := list }}
{{- range .containers }}
{{- $container := deepCopy . }}
{{- if not (hasKey . "securityContext") }}
{{- $_ := set $container "securityContext" $.root.Values.securityContext }}
{{- end }}
{{- $containers = append $containers $container }}
{{- end }}
{{- toYaml $containers }}
{{- end }}

{{/* Which controller's annotations an Ingress carries. */}}
{{- define "agentcore.ingressController" -}}
{{- default .Values.sessionAffinity.controller .Values.ingress.controller }}
{{- end }}

{{/* What an Ingress needs for large bodies, long streams and WebSockets. */}}
{{- define "agentcore.streamingAnnotations" -}}
{{- $seconds := .Values.streaming.idleSeconds | int64 }}
{{- $controller := include "agentcore.ingressController" . }}
{{- if eq $controller "ingress-nginx" }}
nginx.ingress.kubernetes.io/proxy-buffering: "off"
nginx.ingress.kubernetes.io/proxy-http-version: "1.1"
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ $seconds | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ $seconds | quote }}
nginx.ingress.kubernetes.io/proxy-body-size: {{ include "agentcore.number" (default 104857600 .Values.agent.settings.maxBodyBytes) | quote }}
{{- else if eq $controller "haproxy" }}
haproxy-ingress.github.io/timeout-server: {{ printf "%ds" $seconds | quote }}
haproxy-ingress.github.io/timeout-tunnel: {{ printf "%ds" $seconds | quote }}
{{- end }}
{{- end }}

{{- define "agentcore.ingressSpec" -}}
{{- with .root.Values.ingress.className }}
ingressClassName: {{ . }}
{{- end }}
{{- with .root.Values.ingress.tls }}
tls:
  {{- toYaml . | nindent 2 }}
{{- end }}
rules:
  {{- range default (list "") .root.Values.ingress.hosts }}
  - http:
      paths:
        {{- range include "agentcore.publicPaths" $.root | fromYamlArray }}
        - path: {{ .path }}
          pathType: {{ ternary "Exact" $.root.Values.ingress.pathType .exact }}
          backend:
            service:
              name: {{ $.service }}
              port:
                name: http
        {{- end }}
    {{- with . }}
    host: {{ . | quote }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* Combinations of values that cannot work. The schema sees each value alone; this sees them together. */}}
{{- define "agentcore.check" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling.enabled and keda.enabled: both would scale the same pods; choose one" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int64 .Values.autoscaling.minReplicas) (int64 .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is larger than autoscaling.maxReplicas" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not (or .Values.autoscaling.cpuUtilization .Values.autoscaling.memoryUtilization .Values.autoscaling.invocationsPerPod)) }}
{{- fail "autoscaling: nothing to scale by; set cpuUtilization, memoryUtilization or invocationsPerPod" }}
{{- end }}
{{- with .Values.agent.settings }}
{{- if and $.Values.autoscaling.enabled .maxConcurrentInvocations }}
{{- $each := add (int64 .maxConcurrentInvocations) (int64 (ternary .queueSize 100 (hasKey . "queueSize"))) }}
{{- $most := mul $each (max 1 (int64 $.Values.agent.workers)) }}
{{- if ge (float64 $.Values.autoscaling.invocationsPerPod) (float64 $most) }}
{{- fail (printf "autoscaling.invocationsPerPod: a pod has never more than %d invocations, by agent.settings.maxConcurrentInvocations and queueSize, so nothing would be scaled up" $most) }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.keda.enabled }}
{{- if not .Values.keda.prometheus.serverAddress }}
{{- fail "keda.prometheus.serverAddress: where is Prometheus?" }}
{{- end }}
{{- if gt (int64 .Values.keda.minReplicas) (int64 .Values.keda.maxReplicas) }}
{{- fail "keda.minReplicas is larger than keda.maxReplicas" }}
{{- end }}
{{- end }}
{{- with .Values.agent.settings }}
{{- if and .maxConcurrentInvocations (gt (int64 .maxConcurrentPerSession) (int64 .maxConcurrentInvocations)) }}
{{- fail "agent.settings: maxConcurrentPerSession is larger than maxConcurrentInvocations, and would limit nothing" }}
{{- end }}
{{- if and (float64 .streamTimeoutSeconds) (ge (float64 .streamIdleSeconds) (float64 .streamTimeoutSeconds)) }}
{{- fail "agent.settings: streamIdleSeconds is not smaller than streamTimeoutSeconds, and would end nothing" }}
{{- end }}
{{- end }}
{{- $keepalive := ternary .Values.agent.settings.sseKeepaliveSeconds 15 (hasKey .Values.agent.settings "sseKeepaliveSeconds") }}
{{- if ge (float64 $keepalive) (float64 .Values.streaming.idleSeconds) }}
{{- fail (printf "streaming.idleSeconds: proxies would cut a silent stream after %s s, and agent.settings.sseKeepaliveSeconds has a comment sent after %s s" (include "agentcore.number" .Values.streaming.idleSeconds) (include "agentcore.number" $keepalive)) }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs: which Gateway does the route hang on?" }}
{{- end }}
{{- range $path, $secret := dict
  "auth.apiKeysSecret" .Values.auth.apiKeysSecret
  "helmTest.credentialsSecret" .Values.helmTest.credentialsSecret
  "metrics.monitor.credentialsSecret" .Values.metrics.monitor.credentialsSecret
  "otel.headersSecret" .Values.otel.headersSecret }}
{{- if and $secret.name (not $secret.key) }}
{{- fail (printf "%s.key: which key of the Secret %s is it?" $path $secret.name) }}
{{- end }}
{{- end }}
{{- with .Values.auth.jwt }}
{{- $lists := concat .allowedAudience .allowedClients .allowedScopes }}
{{- if and .discoveryUrl (not $lists) }}
{{- fail "auth.jwt.discoveryUrl: every token of that issuer would do; set allowedAudience, allowedClients or allowedScopes" }}
{{- end }}
{{- if and $lists (not .discoveryUrl) }}
{{- fail "auth.jwt.discoveryUrl: who issues the tokens that allowedAudience, allowedClients and allowedScopes are for?" }}
{{- end }}
{{- $egress := $.Values.networkPolicy.egress }}
{{- if and .discoveryUrl $.Values.networkPolicy.enabled $egress.restricted (not (or $egress.https $egress.rules)) }}
{{- fail "networkPolicy.egress: nothing lets the agent reach auth.jwt.discoveryUrl; set https, or a rule in rules" }}
{{- end }}
{{- end }}
{{- if and (or .Values.auth.metrics .Values.auth.schema) (not (include "agentcore.authenticates" .)) }}
{{- fail "auth.metrics and auth.schema need auth.jwt.discoveryUrl or auth.apiKeysSecret.name: nobody could come in" }}
{{- end }}
{{- if and .Values.auth.metrics .Values.metrics.monitor.enabled (not .Values.metrics.monitor.credentialsSecret.name) }}
{{- fail "auth.metrics: Prometheus would be refused; set metrics.monitor.credentialsSecret" }}
{{- end }}
{{- $affinity := .Values.sessionAffinity.controller }}
{{- if and (has $affinity (list "ingress-nginx" "haproxy")) (not .Values.ingress.enabled) }}
{{- fail (printf "sessionAffinity.controller=%s needs ingress.enabled=true" $affinity) }}
{{- end }}
{{- if and (eq $affinity "envoy-gateway") (not .Values.httpRoute.enabled) }}
{{- fail "sessionAffinity.controller=envoy-gateway needs httpRoute.enabled=true" }}
{{- end }}
{{- range list "nginx.ingress.kubernetes.io/service-upstream" "haproxy-ingress.github.io/service-upstream" }}
{{- if and (ne $affinity "none") (eq (toString (get $.Values.ingress.annotations .)) "true") }}
{{- fail (printf "ingress.annotations: %s sends everything to the Service's address, and sessionAffinity has to choose pods" .) }}
{{- end }}
{{- end }}
{{- end }}
