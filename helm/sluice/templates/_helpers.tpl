{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "sluice.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sluice.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sluice.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sluice.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sluice.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sluice.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Seconds of a duration such as 1h30m. */}}
{{- define "sluice.seconds" -}}
{{- $seconds := 0 -}}
{{- range regexFindAll "[0-9]+ *[a-z]+" (toString .) -1 -}}
{{- $count := regexFind "[0-9]+" . | int -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- if hasPrefix "h" $unit -}}{{- $seconds = add $seconds (mul $count 3600) -}}
{{- else if or (eq $unit "ms") (hasPrefix "milli" $unit) -}}{{- $seconds = add $seconds 1 -}}
{{- else if hasPrefix "m" $unit -}}{{- $seconds = add $seconds (mul $count 60) -}}
{{- else if hasPrefix "s" $unit -}}{{- $seconds = add $seconds $count -}}
{{- else -}}{{- fail (printf "%q: give this duration in h, m and s" (toString .)) -}}
{{- end -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* Sluice cleans up for a few seconds after its grace period. */}}
{{- define "sluice.terminationGrace" -}}
{{- $grace := include "sluice.seconds" .Values.config.shutdown.grace_period | int -}}
{{- $needed := add $grace 15 -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}{{- $needed -}}
{{- else if lt (int $given) (int $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is shorter than the %d that workers may need to end (config.shutdown.grace_period and 15 s): raise it, or lower config.shutdown.grace_period" (int $given) (int $needed)) -}}
{{- else -}}{{- $given -}}
{{- end -}}
{{- end -}}

{{/* How ClickHouse reads S3, if that is given. */}}
{{- define "sluice.s3Access" -}}
{{- $s3 := default dict (get .Values.config "s3") -}}
{{- default dict (get $s3 "clickhouse_access") | toYaml -}}
{{- end -}}

{{/* Whether a certificate authority is mounted. */}}
{{- define "sluice.hasCa" -}}
{{- with .Values.clickhouseCa -}}
{{- if or .existingSecret .existingConfigMap -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses labels that an object would have twice. */}}
{{- define "sluice.checkLabels" -}}
{{- $own := include "sluice.labels" (merge (dict "Values" (merge (dict "commonLabels" dict) (omit .Values "commonLabels"))) (omit . "Values")) | fromYaml -}}
{{- $own = set $own "app.kubernetes.io/component" "" -}}
{{- range $name, $_ := .Values.commonLabels -}}
{{- if hasKey $own $name -}}
{{- fail (printf "commonLabels: the chart itself sets %s: remove it" $name) -}}
{{- end -}}
{{- end -}}
{{- $taken := merge (dict) $own .Values.commonLabels -}}
{{- $others := dict "podLabels" .Values.podLabels "podMonitor.labels" .Values.podMonitor.labels "prometheusRule.labels" .Values.prometheusRule.labels "dashboard.labels" .Values.dashboard.labels -}}
{{- range $value, $labels := $others -}}
{{- range $name, $_ := $labels -}}
{{- if hasKey $taken $name -}}
{{- fail (printf "%s: the chart or commonLabels already set %s: remove it from one of them" $value $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses values that can never work, and secrets that everybody could read. */}}
{{- define "sluice.check" -}}
{{- $config := .Values.config -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository: give the repository of your registry that has the image" -}}
{{- end -}}
{{- if and .Values.prometheusRule.enabled (not .Values.prometheusRule.runbookUrl) -}}
{{- fail "prometheusRule.runbookUrl: give the URL below which you publish docs/runbooks" -}}
{{- end -}}
{{- include "sluice.checkLabels" . -}}
{{- range .Values.extraVolumes -}}
{{- if has .name (list "config" "event-types" "clickhouse" "ca" "s3") -}}
{{- fail (printf "extraVolumes: the chart itself has a volume named %s: give it another name" .name) -}}
{{- end -}}
{{- end -}}
{{- if not (dig "queue" "url" "" $config) -}}
{{- fail "config.queue.url: give the URL of the SQS queue" -}}
{{- end -}}
{{- if not (dig "clickhouse" "url" "" $config) -}}
{{- fail "config.clickhouse.url: give the URL of ClickHouse's HTTP interface" -}}
{{- end -}}
{{- if dig "clickhouse" "password" "" $config -}}
{{- fail "config.clickhouse.password: a secret does not belong in a ConfigMap: give it as clickhousePassword.existingSecret" -}}
{{- end -}}
{{- $access := include "sluice.s3Access" . | fromYaml -}}
{{- if $access.secret_access_key -}}
{{- fail "config.s3.clickhouse_access.secret_access_key: a secret does not belong in a ConfigMap: give it as s3SecretAccessKey.existingSecret" -}}
{{- end -}}
{{- if and (or .Values.s3SecretAccessKey.existingSecret .Values.s3SecretAccessKey.value) (ne (default "" $access.kind) "keys") -}}
{{- fail "s3SecretAccessKey: only needed with config.s3.clickhouse_access.kind: keys: set that, with its access_key_id, or leave s3SecretAccessKey out" -}}
{{- end -}}
{{- if and .Values.clickhouseCa.existingSecret .Values.clickhouseCa.existingConfigMap -}}
{{- fail "clickhouseCa: give existingSecret or existingConfigMap, not both" -}}
{{- end -}}
{{- if and (include "sluice.hasCa" .) (dig "clickhouse" "ca_file" "" $config) -}}
{{- fail "clickhouseCa and config.clickhouse.ca_file: give one of the two" -}}
{{- end -}}
{{- if and .Values.eventTypes (dig "event_types" "dir" "" $config) -}}
{{- fail "eventTypes and config.event_types.dir: give one of the two" -}}
{{- end -}}
{{- if and .Values.keda.enabled (gt (int .Values.keda.minReplicas) (int .Values.keda.maxReplicas)) -}}
{{- fail (printf "keda.minReplicas: %d is more than keda.maxReplicas, %d" (int .Values.keda.minReplicas) (int .Values.keda.maxReplicas)) -}}
{{- end -}}
{{- $authentication := .Values.keda.triggerAuthentication -}}
{{- if and .Values.keda.enabled (eq .Values.keda.identityOwner "pod") (not $authentication.existing) (eq $authentication.identityOwner "workload") .Values.serviceAccount.create (not (index .Values.serviceAccount.annotations "eks.amazonaws.com/role-arn")) -}}
{{- fail "keda.triggerAuthentication.identityOwner: KEDA takes the role of the workers from serviceAccount.annotations.eks.amazonaws.com/role-arn: give that, or set identityOwner to keda" -}}
{{- end -}}
{{- range $job := list "reconcile" "backfill" -}}
{{- $values := index $.Values $job -}}
{{- if and $values.enabled (not (hasPrefix "s3://" $values.url)) -}}
{{- fail (printf "%s.url: give what to list, such as s3://bucket/prefix/" $job) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The configuration file: the given values, and the paths of the files that the chart mounts. */}}
{{- define "sluice.config" -}}
{{- include "sluice.check" . -}}
{{- $config := deepCopy .Values.config -}}
{{- if or .Values.clickhousePassword.existingSecret .Values.clickhousePassword.value -}}
{{- $_ := set $config.clickhouse "password_file" "/etc/sluice/clickhouse/password" -}}
{{- end -}}
{{- if include "sluice.hasCa" . -}}
{{- $_ := set $config.clickhouse "ca_file" "/etc/sluice/ca/ca.crt" -}}
{{- end -}}
{{- if or .Values.s3SecretAccessKey.existingSecret .Values.s3SecretAccessKey.value -}}
{{- $_ := set $config.s3.clickhouse_access "secret_access_key_file" "/etc/sluice/s3/secret_access_key" -}}
{{- end -}}
{{- if .Values.eventTypes -}}
{{- $types := default dict (get $config "event_types") -}}
{{- $_ := set $config "event_types" (merge (dict "dir" "/etc/sluice/event_types") $types) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Data of the ConfigMap: the configuration, and the event types. */}}
{{- define "sluice.files" -}}
sluice.yaml: |
  {{- include "sluice.config" . | nindent 2 }}
{{- range $file, $text := .Values.eventTypes }}
{{ $file }}: {{ toYaml $text | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sluice.secretData" -}}
{{- with .Values.clickhousePassword.value }}
password: {{ . | b64enc }}
{{- end }}
{{- with .Values.s3SecretAccessKey.value }}
secret_access_key: {{ . | b64enc }}
{{- end }}
{{- end -}}

{{/* A pod that runs one subcommand: (dict "root" $ "args" (list …) "suffix" "-migrate"). */}}
{{- define "sluice.podSpec" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $named := printf "%s%s" (include "sluice.fullname" $root) (default "" .suffix) -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml $values.podSecurityContext | nindent 2 }}
containers:
  - name: sluice
    image: {{ include "sluice.image" $root }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    args: {{- toYaml .args | nindent 6 }}
    env:
      - name: SLUICE_CONFIG
        value: /etc/sluice/sluice.yaml
      {{- with $values.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $values.envFrom }}
    envFrom: {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .container }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    resources: {{- toYaml $values.resources | nindent 6 }}
    securityContext: {{- toYaml $values.securityContext | nindent 6 }}
    volumeMounts:
      - name: config
        mountPath: /etc/sluice/sluice.yaml
        subPath: sluice.yaml
        readOnly: true
      {{- if $values.eventTypes }}
      - name: event-types
        mountPath: /etc/sluice/event_types
        readOnly: true
      {{- end }}
      {{- if or $values.clickhousePassword.existingSecret $values.clickhousePassword.value }}
      - name: clickhouse
        mountPath: /etc/sluice/clickhouse
        readOnly: true
      {{- end }}
      {{- if include "sluice.hasCa" $root }}
      - name: ca
        mountPath: /etc/sluice/ca
        readOnly: true
      {{- end }}
      {{- if or $values.s3SecretAccessKey.existingSecret $values.s3SecretAccessKey.value }}
      - name: s3
        mountPath: /etc/sluice/s3
        readOnly: true
      {{- end }}
      {{- with $values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ $named }}
      items:
        - {key: sluice.yaml, path: sluice.yaml}
  {{- if $values.eventTypes }}
  - name: event-types
    configMap:
      name: {{ $named }}
      items:
        {{- range $file, $text := $values.eventTypes }}
        - {key: {{ $file | quote }}, path: {{ $file | quote }}}
        {{- end }}
  {{- end }}
  {{- with $values.clickhousePassword }}
  {{- if or .existingSecret .value }}
  - name: clickhouse
    secret:
      secretName: {{ default $named .existingSecret }}
      items:
        - {key: {{ if .existingSecret }}{{ .key | quote }}{{ else }}password{{ end }}, path: password}
  {{- end }}
  {{- end }}
  {{- with $values.clickhouseCa }}
  {{- if .existingSecret }}
  - name: ca
    secret:
      secretName: {{ .existingSecret }}
      items:
        - {key: {{ .key | quote }}, path: ca.crt}
  {{- else if .existingConfigMap }}
  - name: ca
    configMap:
      name: {{ .existingConfigMap }}
      items:
        - {key: {{ .key | quote }}, path: ca.crt}
  {{- end }}
  {{- end }}
  {{- with $values.s3SecretAccessKey }}
  {{- if or .existingSecret .value }}
  - name: s3
    secret:
      secretName: {{ default $named .existingSecret }}
      items:
        - {key: {{ if .existingSecret }}{{ .key | quote }}{{ else }}secret_access_key{{ end }}, path: secret_access_key}
  {{- end }}
  {{- end }}
  {{- with $values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
