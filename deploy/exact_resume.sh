#!/usr/bin/env bash
# exact_resume.sh VIVARIUM [SERVE FLAGS]: the main job of an installed program, wherever it is: serves
# the bundled model, generates 2k tokens; generates k, is killed, starts again, goes on by the
# state's id for k, and says whether the tokens are the same; then drains. Needs bash, grep and sed.
set -euo pipefail
vivarium=${1:?expected the program}
shift
serve_flags=("$@")
work=$(mktemp -d)
server_pid=""
cleanup() {
  status=$?
  [ -z "$server_pid" ] || { kill -9 "$server_pid"; wait "$server_pid" || true; } 2>/dev/null
  [ "$status" = 0 ] || [ ! -s "$work/log" ] || tail -n 20 "$work/log" >&2
  rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "exact_resume.sh: $*" >&2; exit 1; }

start() {
  "$vivarium" serve --listen 127.0.0.1:0 --metrics-listen '' --store "$work/store" \
    "${serve_flags[@]}" >"$work/listening" 2>>"$work/log" &
  server_pid=$!
  local deadline=$((SECONDS + 120))
  VIVARIUM_SERVER=""
  while [ -z "$VIVARIUM_SERVER" ]; do
    kill -0 "$server_pid" 2>/dev/null || fail "the server did not start"
    [ $SECONDS -lt $deadline ] || fail "the server did not listen within 120 s"
    sleep 0.1
    VIVARIUM_SERVER=$(sed -n 's/^listening on //p' "$work/listening")
  done
  export VIVARIUM_SERVER
  "$vivarium" health --wait 60 >/dev/null
}
generate() { "$vivarium" generate --json --ignore-eos "$@"; }
tokens() { grep -o '"token_ids":\[[^]]*\]' | sed 's/.*\[//;s/\]//'; }
state_id() { grep -o '"state_id":"[^"]*"' | sed 's/.*:"//;s/"//'; }

sampling=(--seed 11 --temperature 0.8)
start
whole=$(generate "Once upon a time" --max-tokens 48 "${sampling[@]}" | tokens)
first=$(generate "Once upon a time" --max-tokens 24 "${sampling[@]}")
{ kill -9 "$server_pid"; wait "$server_pid" || true; } 2>/dev/null
start
second=$(generate --state "$(state_id <<<"$first")" '' --max-tokens 24 | tokens)
[ "$whole" = "$(tokens <<<"$first"),$second" ] ||
  fail "after the kill: expected tokens $whole, found $(tokens <<<"$first"),$second"
kill "$server_pid"
wait "$server_pid" || fail "the drain exited with $?"
server_pid=""
echo "48 tokens, with a kill in the middle: the same"
