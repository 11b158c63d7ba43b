#!/usr/bin/env bash
# quickstart.sh [--keep] [--no-install]: from a fresh Debian 12 to a conversation that survives
# kill -9.
#
# Installs packages, builds, starts the server on the bundled model, generates over gRPC, tells a
# fact into a session, kills the server, restarts it, resumes the session by its state's id.
# --keep leaves the server running; --no-install leaves packages alone.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

keep=0 install=1
for option in "$@"; do
  case "$option" in
    --keep) keep=1 ;;
    --no-install) install=0 ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown option '$option' (see --help)" >&2; exit 2 ;;
  esac
done

work=$(mktemp -d)
store=$work/store
[ "$keep" = 0 ] || store=${XDG_DATA_HOME:-$HOME/.local/share}/vivarium/store
server_pid=""
cleanup() {
  status=$?
  if [ "$keep" = 0 ] || [ "$status" != 0 ]; then
    [ -z "$server_pid" ] || { kill "$server_pid"; wait "$server_pid" || true; } 2>/dev/null
  fi
  [ "$status" = 0 ] || [ ! -s "$work/server.log" ] || tail -n 20 "$work/server.log" >&2
  rm -rf "$work"
}
trap cleanup EXIT

step() { printf '\n\033[1m%s\033[0m\n' "$1"; }
vivarium=build/bin/vivarium
field() { jq -r ".$1"; }

start_server() {
  "$vivarium" serve --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --store "$store" \
    > "$work/listening" 2>> "$work/server.log" &
  server_pid=$!
  for _ in $(seq 600); do
    address=$(sed -n 's/^listening on //p' "$work/listening")
    [ -z "$address" ] || return 0
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.1
  done
  echo "the server did not start:" >&2
  return 1
}

step "1. Packages"
[ "$install" = 0 ] || deploy/install_packages.sh
echo "all there"

step "2. Build"
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DVIVARIUM_BUILD_TESTS=OFF \
  > "$work/configure.log" 2>&1 || { cat "$work/configure.log" >&2; exit 1; }
ninja -C build

step "3. Serve the bundled model, and let it tell a story"
start_server
echo "serving on $address"
"$vivarium" generate --server "$address" --max-tokens 60 --seed 7 "Once upon a time"

step "4. Tell it something, in a session"
"$vivarium" generate --server "$address" --chat --session tour --save end --temperature 0 \
  "My dog is called Biscuit."
told=$("$vivarium" sessions show tour --server "$address" --json)
state=$(field head.id <<< "$told")
position=$(field head.position <<< "$told")
echo "saved as $state after $position tokens"

step "5. kill -9, then start again on the same store"
{ kill -9 "$server_pid"; wait "$server_pid" || true; } 2>/dev/null  # the shell would say "Killed"
start_server
echo "serving on $address"

step "6. Resume by the state's id"
answer=$("$vivarium" generate --server "$address" --chat --state "$state" --temperature 0 --json \
  "What is my dog called?")
echo "answer: $(field text <<< "$answer")"
restored=$(field usage.restored_tokens <<< "$answer")
prefilled=$(field usage.prefill_tokens <<< "$answer")
echo "restored_tokens: $restored, computed for this question: $prefilled"
[ "$restored" = "$position" ] || { echo "expected $position restored tokens" >&2; exit 1; }
field text <<< "$answer" | grep -q Biscuit || { echo "the fact was not recalled" >&2; exit 1; }

step "The conversation survived."
if [ "$keep" = 1 ]; then
  echo "The server runs on $address (process $server_pid). Talk to it:"
  echo "  $vivarium chat --server $address --session tour"
else
  echo "Talk to it:"
  echo "  $vivarium serve &"
  echo "  $vivarium chat"
fi
