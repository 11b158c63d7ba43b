#!/usr/bin/env bash
# overload.sh [SECONDS] [FACTOR]: what is left of the server's best when FACTOR times as much is asked
# of it for SECONDS (600 and 10). Prints one JSON object, and fails below the goals:
#   goodput (answers a second within the SLO) >= 0.9 of the peak, refusals within 50 ms (p99),
#   resident memory at the end <= 1.1 times that after the first tenth.
# The peak is that of closed loops that just fill the slots. Needs a built build/bin/vivarium and jq.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
seconds=${1:-600} factor=${2:-10}
vivarium=build/bin/vivarium
slots=${SLOTS:-32} max_wait=${MAX_QUEUE_SECONDS:-2}
shape=(--input-tokens 64 --output-tokens 64 --connections 8)

work=$(mktemp -d)
server_pid=""
cleanup() {
  [ -z "$server_pid" ] || { kill "$server_pid"; wait "$server_pid" || true; } 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

"$vivarium" serve --listen 127.0.0.1:0 --metrics-listen '' --store "$work/store" \
  --max-slots "$slots" --max-live-streams "$slots" --max-queue-seconds "$max_wait" \
  --log-level error > "$work/listening" &
server_pid=$!
until grep -q listening "$work/listening"; do
  kill -0 "$server_pid"
  sleep 0.1
done
VIVARIUM_SERVER=$(sed -n 's/^listening on //p' "$work/listening")
export VIVARIUM_SERVER
bench() { "$vivarium" bench --quiet --json "${shape[@]}" "$@"; }
rss_kib() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$server_pid/status"; }

bench --users "$slots" --duration 5 > /dev/null  # warm
bench --users "$slots" --duration "$((seconds < 100 ? 10 : 30))" > "$work/peak.json"
peak=$(jq '.loads[0].throughput.requests_s' "$work/peak.json")
# Twice what an answer takes in an idle queue, and the wait that the server allows.
slo_ms=$(jq --argjson wait "$max_wait" '.loads[0].latency_ms.e2e.p99 * 2 + $wait * 1000 | ceil' \
  "$work/peak.json")
rate=$(jq -n "$peak * $factor")

bench --rate "$rate" --arrivals poisson --duration "$seconds" --max-in-flight 4096 \
  --slo "e2e=$slo_ms" > "$work/overload.json" &
bench_pid=$!
sleep "$((seconds / 10 + 1))"
rss_early=$(rss_kib)
wait "$bench_pid"
rss_late=$(rss_kib)

jq -n --slurpfile load "$work/overload.json" --argjson peak "$peak" --argjson factor "$factor" \
  --argjson seconds "$seconds" --argjson slo_ms "$slo_ms" \
  --argjson early "$rss_early" --argjson late "$rss_late" '
  $load[0].loads[0] as $l | {
    seconds: $seconds, factor: $factor, peak_per_s: $peak, slo_ms: $slo_ms,
    goodput_per_s: $l.goodput.requests_s,
    goodput_share: ($l.goodput.requests_s / $peak),
    answered: $l.requests.ok, errors: ($l.errors | map_values(.count)),
    refusal_p99_ms: ($l.errors.RESOURCE_EXHAUSTED.latency_ms.p99 // 0),
    rss_early_mib: ($early / 1024), rss_late_mib: ($late / 1024)
  } | .passes = (.goodput_share >= 0.9 and .refusal_p99_ms < 50
                 and .rss_late_mib <= 1.1 * .rss_early_mib)' | tee "$work/result.json"
jq -e .passes "$work/result.json" > /dev/null
