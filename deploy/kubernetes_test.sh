#!/usr/bin/env bash
# kubernetes_test.sh [VIVARIUM]: renders the Kustomize overlays (kubectl kustomize, offline) and the
# Helm chart (tests/deploy/helm_render, since Debian 12 has no helm), and checks what comes out:
# every field against the API's types, every flag and setting against the program, ports, labels,
# volumes and times against each other (tests/deploy/manifests.py). No cluster is needed, none is
# asked. VIVARIUM: the program (default: build/bin/vivarium).
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
vivarium=${1:-build/bin/vivarium}
deploy/missing_tools.sh kubectl go
/usr/bin/python3 -c 'import yaml, kubernetes' || deploy/missing_tools.sh python3-yaml,python3-kubernetes

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
check() {  # NAME FILE
  /usr/bin/python3 tests/deploy/manifests.py --vivarium "$vivarium" --documents "$2" |
    sed "s|^|$1: |"
}

for overlay in cpu cuda; do
  kubectl kustomize "deploy/kubernetes/overlays/$overlay" >"$work/$overlay.yaml"
  check "overlay $overlay" "$work/$overlay.yaml"
done
grep -q 'nvidia.com/gpu: "1"' "$work/cuda.yaml"

(cd tests/deploy/helm_render &&
  GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE="$work/go" go build -o "$work/render" .)
cat >"$work/gpu.yaml" <<'VALUES'
image: {tag: cuda}
replicas: 3
gpus: 2
modelsClaim: models
config: {model: /models/mamba-130m-hf, max-slots: 64, codec: zstd, drain-seconds: 120, deterministic: true}
storage: {size: 200Gi, className: fast}
imagePullSecrets: [{name: registry}]
nodeSelector: {disk: local}
tolerations: [{key: batch, operator: Exists}]
affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: host, labelSelector: {matchLabels: {a: b}}}]}}
VALUES
echo 'networkPolicy: {enabled: false}
podAnnotations: {}' >"$work/open.yaml"
echo 'config: {no-such-setting: 1}' >"$work/wrong.yaml"
for values in "" gpu open; do
  "$work/render" deploy/helm/vivarium ${values:+"$work/$values.yaml"} >"$work/helm.yaml" 2>"$work/notes"
  check "chart ${values:-as it is}" "$work/helm.yaml"
  [ "$values" != gpu ] || cp "$work/helm.yaml" "$work/helm_gpu.yaml"
done
for expected in 'nvidia.com/gpu: "2"' 'terminationGracePeriodSeconds: 180' 'max-slots = 64' \
    'claimName: models' 'codec = "zstd"' 'deterministic = true' 'key: batch' 'storageClassName: fast'; do
  grep -qF -- "$expected" "$work/helm_gpu.yaml" || { echo "chart gpu: has no $expected" >&2; exit 1; }
done
# The checks see through the chart.
"$work/render" deploy/helm/vivarium "$work/wrong.yaml" >"$work/helm.yaml" 2>/dev/null
! check "chart wrong" "$work/helm.yaml" >"$work/wrong" || { echo "a wrong setting passes" >&2; exit 1; }
grep -q "no setting no-such-setting" "$work/wrong"
