#!/usr/bin/env bash
# container_test.sh [OPTIONS]: builds the image with buildah, runs it with podman as it is meant to
# be run (read-only, no capabilities, not root), and lets it do its job: generate in a session,
# be stopped in the middle of a stream (which drains it), start again on the same volume, go on
# exactly; then the same volume under the other target, and in the pod of deploy/kubernetes (podman
# play kube). Meanwhile a real Prometheus scrapes it, loads the alert rules and answers every
# question of the dashboard. Last, the Debian package under a systemd that runs in a container.
# Needs root and a Debian mirror; all images, containers and volumes live
# in a temporary folder.
#
#   --build DIR     the build folder (default: build)
#   --no-build      take the Debian package that is there
#   --from-source   compile inside the image's build instead of taking the package
#   --base TAR      the base, from `mmdebstrap --variant=minbase bookworm TAR`; made when absent
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

build=build build_first=1 base="" package_from=prebuilt
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?--build needs a folder}; shift ;;
    --no-build) build_first=0 ;;
    --from-source) package_from=build build_first=0 ;;
    --base) base=${2:?--base needs a tar file}; shift ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "container_test.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
  shift
done
deploy/missing_tools.sh buildah podman runc catatonit mmdebstrap jq curl iptables prometheus kubectl
[ "$(id -u)" = 0 ] || { echo "container_test.sh: needs root" >&2; exit 1; }
[ "$build" = build ] || [ $package_from = build ] ||
  { echo "container_test.sh: the image takes the package from build/ only" >&2; exit 2; }

step() { printf '\n=== %s (%s s)\n' "$1" "$SECONDS"; }
fail() { echo "container_test.sh: $*" >&2; exit 1; }
expect() { [ "$2" = "$3" ] || fail "$1: expected '$3', found '$2'"; }

work=$(mktemp -d)
export CONTAINERS_CONF=$PWD/deploy/containers.conf
driver=vfs  # works everywhere; overlay copies less
! grep -qw overlay /proc/filesystems || driver=overlay
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver "$driver")
# Where no systemd runs, podman says each time that it has no timer for the health check.
podman() { command podman "${storage[@]}" "$@" 2> >(grep -v 'systemd connection' >&2); }
prometheus_pid=""
cleanup() {
  status=$?
  [ "$status" = 0 ] || podman logs vivarium 2>&1 | tail -n 30 >&2 || true
  [ -z "$prometheus_pid" ] || { kill "$prometheus_pid"; wait "$prometheus_pid" || true; } 2>/dev/null
  podman pod rm --all --force --time 0 >/dev/null 2>&1 || true
  podman rm --all --force --time 0 >/dev/null 2>&1 || true
  while umount "$work"/storage/overlay/*/merged "$work/storage/overlay" 2>/dev/null; do :; done
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT

if [ $build_first = 1 ]; then
  step "the package"
  cmake -S . -B "$build" -G Ninja >/dev/null
  ninja -C "$build" --quiet deb
fi

step "the base image"
base=${base:-$work/base.tar}
[ -s "$base" ] || mmdebstrap --quiet --variant=minbase bookworm "$base"
podman import --quiet "$base" localhost/debian:bookworm >/dev/null

# What the compiler has done on this machine before need not be done again inside.
ccache=()
[ $package_from = prebuilt ] || [ ! -d ~/.cache/ccache ] ||
  ccache=(--volume ~/.cache/ccache:/root/.cache/ccache)
build_image() {  # TARGET
  buildah "${storage[@]}" bud --quiet --layers --isolation chroot --format docker --target "$1" \
    -f deploy/Containerfile --ignorefile deploy/Containerfile.dockerignore \
    --build-arg BASE=localhost/debian:bookworm --build-arg PACKAGE_FROM=$package_from \
    --build-arg JOBS="${JOBS:-$(nproc)}" "${ccache[@]}" \
    --build-arg VERSION="$(sed -n 's/^project(vivarium VERSION \([^ ]*\).*/\1/p' CMakeLists.txt)" \
    --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --build-arg CREATED="$(date -u +%Y-%m-%dT%H:%M:%SZ)" -t "localhost/vivarium:$1" . >"$work/build.log" 2>&1 ||
    { tail -n 50 "$work/build.log" >&2; fail "the image $1 does not build"; }
}
step "the image, target cpu ($package_from)"
build_image cpu

step "what it says of itself"
podman inspect localhost/vivarium:cpu >"$work/image.json"
inspect() { jq -r ".[0]$1" "$work/image.json"; }
expect user "$(inspect .Config.User)" 10001:10001
expect entrypoint "$(inspect '.Config.Entrypoint | join(" ")')" /usr/bin/vivarium
expect health "$(jq -r '.[0] | (.HealthCheck // .Healthcheck).Test | join(" ")' "$work/image.json")" "CMD /usr/bin/vivarium health"
expect signal "$(inspect .Config.StopSignal)" SIGTERM
expect version "$(inspect '.Labels["org.opencontainers.image.version"]')" \
  "$(sed -n 's/^project(vivarium VERSION \([^ ]*\).*/\1/p' CMakeLists.txt)"
expect base "$(inspect '.Labels["org.opencontainers.image.base.name"]')" localhost/debian:bookworm
in_image() { podman run --rm --network none --user 0 --entrypoint "$1" localhost/vivarium:cpu "${@:2}"; }
in_image /usr/bin/vivarium version
in_image /usr/bin/cat /usr/share/doc/vivarium/image-packages.tsv >"$work/packages.tsv"
for package in vivarium libgrpc++1.51 librocksdb7.8 libc6; do
  grep -q "^$package	" "$work/packages.tsv" || fail "the package list has no $package"
done
expect "files that change the user" "$(in_image /usr/bin/find / -xdev -perm /6000 -type f)" ""

# As deploy/compose.yaml and deploy/kubernetes run it.
podman volume create states >/dev/null
start() {  # IMAGE
  podman run --detach --name vivarium --read-only --cap-drop all \
    --security-opt no-new-privileges --publish 127.0.0.1::50051 --publish 127.0.0.1::9464 \
    --volume states:/var/lib/vivarium "localhost/vivarium:$1" serve \
    --config /etc/vivarium/vivarium.toml --threads 1 --drain-seconds 1 >/dev/null
  podman exec vivarium /usr/bin/vivarium health --wait 60 >/dev/null
}
stop() {
  podman stop --time 60 vivarium >/dev/null
  expect "exit code of a drain" "$(podman inspect --format '{{.State.ExitCode}}' vivarium)" 0
  podman rm vivarium >/dev/null
}
client() { podman exec vivarium /usr/bin/vivarium "$@"; }

step "serve, read-only, as user 10001"
start cpu
podman healthcheck run vivarium || fail "the health check fails"
expect "user of the process" "$(podman top vivarium huser | tail -n 1)" 10001
! podman exec vivarium /usr/bin/touch /usr/bin/x 2>/dev/null || fail "the root file system is writable"
port=$(podman port vivarium 9464/tcp)
curl -sf "http://$port/metrics" | grep -q '^vivarium_slots ' || fail "no metrics on $port"

step "Prometheus: scrape, rules, the dashboard's questions"
cp deploy/observability/vivarium.rules.yml "$work/"
sed "s/vivarium:9464/$port/" deploy/observability/prometheus.yml >"$work/prometheus.yml"
client generate --json --max-tokens 8 "Once upon a time" >/dev/null
prometheus_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" \
  --web.listen-address="127.0.0.1:$prometheus_port" 2>"$work/prometheus.log" &
prometheus_pid=$!
ask() { curl -sS --max-time 10 --get "http://127.0.0.1:$prometheus_port/api/v1/$1" "${@:2}"; }
for _ in $(seq 300); do
  [ "$(ask query --data-urlencode 'query=up' 2>/dev/null | jq -r '.data.result[0].value[1]' 2>/dev/null)" != 1 ] || break
  sleep 0.1
done
expect "up" "$(ask query --data-urlencode 'query=up' | jq -r '.data.result[0].value[1]')" 1
expect "rules in trouble" "$(ask rules | jq -c '[.data.groups[].rules[] | select(.lastError != null and .lastError != "") | .name]')" "[]"
expect "rules" "$(ask rules | jq '[.data.groups[].rules[]] | length')" \
  "$(grep -c 'alert:' deploy/observability/vivarium.rules.yml)"
num_questions=0
while read -r question; do
  question=${question//\$__rate_interval/1m} question=${question//\$instance/.*}
  expect "answer to $question" "$(ask query --data-urlencode "query=$question" | jq -r .status)" success
  num_questions=$((num_questions + 1))
done < <(jq -r '.. | .expr? // empty' deploy/observability/grafana/dashboards/vivarium.json)
echo "$num_questions questions"
kill "$prometheus_pid"
wait "$prometheus_pid" || true
prometheus_pid=""

step "a session that is stopped in the middle of a stream"
client generate --json --session pause --temperature 0.8 --seed 3 --ignore-eos --max-tokens 100000 \
  "Once upon a time" >"$work/drained.json" &
stream=$!
for _ in $(seq 300); do
  [ "$(curl -sf "http://$port/metrics" | sed -n 's/^vivarium_engine_decode_tokens_total //p')" -lt 50 ] || break
  sleep 0.1
done
stop
wait $stream || fail "the stream was not told how it ended"
expect "end of the stream" "$(jq -r .finish_reason "$work/drained.json")" drained
num_before=$(jq '.token_ids|length' "$work/drained.json")
state=$(jq -r .state_id "$work/drained.json")
echo "$num_before tokens, then saved as $state"

step "again on the same volume: it goes on exactly"
start cpu
client generate --json --session pause --ignore-eos --max-tokens 40 '' >"$work/resumed.json"
expect "restored tokens" "$(jq -r '.usage.restored_tokens > 0' "$work/resumed.json")" true
client generate --json --temperature 0.8 --seed 3 --ignore-eos --max-tokens $((num_before + 40)) \
  --save none "Once upon a time" >"$work/whole.json"
expect "tokens" "$(jq -sc '.[0].token_ids + .[1].token_ids' "$work/drained.json" "$work/resumed.json")" \
  "$(jq -c .token_ids "$work/whole.json")"
echo "$((num_before + 40)) tokens, the same as without the stop"
stop

step "target cuda, on the same volume (without a GPU: on the CPU)"
build_image cuda
expect "what NVIDIA's runtime looks for" \
  "$(podman inspect localhost/vivarium:cuda | jq -r '.[0].Config.Env[]' | grep -c '^NVIDIA_')" 2
start cuda
client generate --json --state "$state" --ignore-eos --max-tokens 40 '' >"$work/other.json"
expect "tokens under the other image" "$(jq -c .token_ids "$work/other.json")" \
  "$(jq -c .token_ids "$work/resumed.json")"
stop

step "the pod of deploy/kubernetes, on the same volume"
kubectl kustomize deploy/kubernetes/overlays/cpu >"$work/kubernetes.yaml"
/usr/bin/python3 tests/deploy/manifests.py --pod "$work/kubernetes.yaml" >"$work/pod.yaml"
podman play kube "$work/pod.yaml" >/dev/null
in_pod() { podman exec vivarium-0-vivarium /usr/bin/vivarium "$@"; }
in_pod health --wait 60 >/dev/null
podman healthcheck run vivarium-0-vivarium || fail "the pod's probe fails"
in_pod generate --json --state "$state" --ignore-eos --max-tokens 40 '' >"$work/pod.json"
expect "tokens in the pod" "$(jq -c .token_ids "$work/pod.json")" "$(jq -c .token_ids "$work/resumed.json")"
podman pod stop --time 60 vivarium-0 >/dev/null

if [ $package_from = prebuilt ]; then
  step "the Debian package under a real systemd: the sandboxed unit"
  mkdir "$work/systemd"
  cp "$build"/vivarium_*_amd64.deb "$work/systemd/vivarium.deb"
  cat >"$work/systemd/Containerfile" <<'CONTAINERFILE'
FROM localhost/debian:bookworm
COPY vivarium.deb /
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
  --no-install-recommends systemd systemd-sysv dbus libnss-systemd /vivarium.deb
STOPSIGNAL SIGRTMIN+3
CMD ["/sbin/init"]
CONTAINERFILE
  buildah "${storage[@]}" bud --quiet --isolation chroot --format docker -t localhost/systemd \
    "$work/systemd" >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log" >&2; fail "no image with systemd"; }
  # systemd manages control groups and mounts, so this container is as good as a machine.
  podman run --detach --name machine --systemd always --privileged --network none localhost/systemd >/dev/null
  on_machine() { podman exec machine "$@"; }
  for _ in $(seq 100); do
    case "$(on_machine systemctl is-system-running 2>/dev/null)" in running|degraded) break ;; esac
    sleep 0.1
  done
  expect "state before" "$(on_machine systemctl is-enabled vivarium || true)" disabled
  on_machine systemctl enable --quiet --now vivarium 2>/dev/null ||
    { on_machine journalctl -u vivarium --no-pager >&2; fail "the unit does not start"; }
  # Started means serving, without a look or a wait.
  told=$(on_machine vivarium generate --json --session s --ignore-eos --max-tokens 20 "Once upon a time")
  first=$(on_machine systemctl show -P MainPID vivarium)
  expect "capabilities" "$(on_machine sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$first/status")" 0000000000000000
  expect "system call filter" "$(on_machine sed -n 's/^Seccomp:[[:space:]]*//p' "/proc/$first/status")" 2
  [ "$(on_machine stat -c %u "/proc/$first")" != 0 ] || fail "the unit runs as root"
  on_machine systemctl kill --signal KILL vivarium
  sleep 2.5  # RestartSec
  on_machine vivarium health --wait 60 >/dev/null
  [ "$(on_machine systemctl show -P MainPID vivarium)" != "$first" ] || fail "the unit was not restarted"
  restored() { on_machine vivarium generate --json --session s --max-tokens 4 "$1" | jq .usage.restored_tokens; }
  expect "restored after a kill" "$(restored ' And')" "$(jq .state.position <<<"$told")"
  echo "killed, restarted by systemd, resumed"
  second=$(on_machine systemctl show -P MainPID vivarium)
  on_machine apt-get install -y -qq --reinstall /vivarium.deb >/dev/null 2>&1 || fail "no reinstallation"
  on_machine vivarium health --wait 60 >/dev/null
  [ "$(on_machine systemctl show -P MainPID vivarium)" != "$second" ] || fail "an upgrade leaves the old program running"
  expect "how it was stopped" "$(on_machine journalctl -u vivarium --no-pager | grep -c 'Deactivated successfully')" 1
  on_machine apt-get purge -y -qq vivarium >/dev/null 2>&1 || fail "no purge"
  expect "state after" "$(on_machine systemctl is-active vivarium || true)" inactive
  on_machine test -d /var/lib/private/vivarium/store || fail "the purge dropped the states"
  echo "upgraded with a drain, purged"
fi

step "the image works"
