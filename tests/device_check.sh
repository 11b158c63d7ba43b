#!/usr/bin/env bash
# device_check.sh [OPTIONS] [BUNDLE]: all that is to be known of a device, on a machine with nothing
# but its driver: kernels, the engine's invariants, the server, and the benchmarks.
#
# BUNDLE: what deploy/make_bundle.sh made, or the folder it unpacks to, or a build folder. Default:
# the bundle or the source tree (its build/) that this script lies in.
#
#   --device D      cuda:N or cpu (default: cuda:0)
#   --out DIR       logs and results (default: device_check.out in the current folder)
#   --json FILE     the results as JSON (default: results.json in DIR)
#   --shapes LIST   of the benchmarks (default: "130m 1.4b 2.8b")
#   --only PART     tests or bench
#   --short         fewer tests, tiny models in the benchmarks: to see that all of it runs
#
# With a server that knows --deterministic the server's tests run under it, and everything is
# compared bit for bit within the device; between device and CPU by tolerance. Exit code 1 when
# anything failed.
set -uo pipefail
export LC_ALL=C
here=$(dirname "$(readlink -f "$0")")

device=cuda:0 out=device_check.out json="" shapes="130m 1.4b 2.8b" only="" short=0 bundle=""
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device=${2:?--device needs cuda:N or cpu}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    --json) json=${2:?--json needs a file}; shift ;;
    --shapes) shapes=${2:?--shapes needs a list}; shift ;;
    --only) only=${2:?--only needs tests or bench}; shift ;;
    --short) short=1 ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) echo "device_check.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
    *) bundle=$1 ;;
  esac
  shift
done
case "$only" in ""|tests|bench) ;; *) echo "device_check.sh: --only '$only': expected tests or bench" >&2; exit 2 ;; esac

mkdir -p "$out"
out=$(readlink -f "$out")
json=${json:-$out/results.json}
if [ -f "$bundle" ]; then
  mkdir -p "$out/unpacked"
  case "$bundle" in
    *.zst) zstd -dc "$bundle" | tar -C "$out/unpacked" -x ;;
    *) tar -C "$out/unpacked" -xzf "$bundle" ;;
  esac || { echo "device_check.sh: $bundle does not unpack" >&2; exit 2; }
  bundle=$out/unpacked/vivarium-bundle
fi
bundle=${bundle:-$here/..}
[ -x "$bundle/bin/vivarium" ] || bundle=$bundle/build
bin=$bundle/bin
[ -x "$bin/vivarium" ] || { echo "device_check.sh: no bin/vivarium in $bundle: expected a bundle or a build folder" >&2; exit 2; }

# Does the device answer at all? Its sentence is the best error there is.
if ! answer=$("$bin/kernel_bench" --device "$device" --probe 2>&1); then
  echo "device_check.sh: $answer" >&2
  echo "(without a GPU: --device cpu)" >&2
  exit 2
fi
echo "$answer"

export VIVARIUM_TEST_DEVICE=$device
deterministic=0
if [ "$device" != cpu ] && "$bin/vivarium" serve --help | grep -q -- --deterministic; then
  export VIVARIUM_TEST_SERVER_FLAGS=--deterministic
  deterministic=1
fi

failed=0 rows=() bench_json=()
# check WHAT PROGRAM [ARGUMENTS]: a GoogleTest program.
check() {
  local what=$1 program=$2 log=$out/$2.log begin=$SECONDS result
  shift 2
  timeout -k 10 1200 "$bin/$program" --gtest_brief=1 "$@" >"$log" 2>&1
  local status=$?
  local ran passed skipped
  ran=$(sed -n 's/^\[==========\] \([0-9]*\) tests\{0,1\} from .* ran.*/\1/p' "$log" | tail -1)
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests\{0,1\}\.$/\1/p' "$log" | tail -1)
  skipped=$(grep -c '^\[  SKIPPED \]' "$log")
  result=ok
  # Nothing run, or nothing but skipped tests, is no success.
  if [ $status != 0 ]; then result=FAILED; elif [ "${passed:-0}" = 0 ]; then result=NOTHING; fi
  [ $result = ok ] || failed=$((failed + 1))
  printf '%-44s %-8s %5s ran %5s passed %5s s\n' "$what" "$result" "${ran:-0}" "${passed:-0}" "$((SECONDS - begin))"
  [ $result = ok ] || grep -E '^\[  FAILED  \]|Failure|expected|error' "$log" | head -5 | sed 's/^/    /'
  rows+=("{\"what\": \"$what\", \"result\": \"$result\", \"ran\": ${ran:-0}, \"passed\": ${passed:-0}, \"seconds\": $((SECONDS - begin))}")
}

# bench NAME PROGRAM ARGUMENTS: its table goes to the screen, its JSON to ours.
bench() {
  local name=$1 program=$2 begin=$SECONDS
  shift 2
  printf '\n%s (%s %s)\n' "$name" "$program" "$*"
  if timeout -k 10 1200 "$bin/$program" --device "$device" --json-to "$out/$name.json" "$@" 2>&1 |
      tee "$out/$name.log"; then
    bench_json+=("{\"name\": \"$name\", \"result\": \"ok\", \"seconds\": $((SECONDS - begin)), \"report\": $(cat "$out/$name.json")}")
  else
    failed=$((failed + 1))
    echo "FAILED"
    bench_json+=("{\"name\": \"$name\", \"result\": \"FAILED\", \"seconds\": $((SECONDS - begin))}")
  fi
}

if [ "$only" != bench ]; then
  few=() resume=()
  if [ $short = 1 ]; then
    few=(--gtest_filter='-*RowDoesNotDependOn*:*ChunkingInPlace*:*ManyRows*')
    resume=(--gtest_filter='*threads2_slots8_neighbours16_chunk7:Forks*:NoRecomputation*')
  fi
  printf '\n%s, tests%s\n' "$device" "$([ $deterministic = 1 ] && echo ', --deterministic')"
  check "ops against double precision" kernels_test "${few[@]}"
  check "model against double precision" model_reference_test
  check "model against goldens" golden_test
  check "1 2 4 5: chunks, rows, slots, forks" model_invariants_test
  check "6: states between device and CPU" device_test
  check "2-5 7 8: engine, real models" real_model_test
  check "server in one process" server_test
  check "3: kill -9, restart, resume" exact_resume_test "${resume[@]}"
  check "6: a thread moves between servers" device_change_test
  check "9: acknowledged states survive kill -9" kill_test
fi

if [ "$only" != tests ]; then
  if [ $short = 1 ]; then
    bench kernel_bench_quick kernel_bench --quick
    bench engine_bench_quick engine_bench --quick
  else
    for shape in $shapes; do
      bench "kernel_bench_$shape" kernel_bench --shape "$shape" --weights bf16
      bench "engine_bench_$shape" engine_bench --shape "$shape" --weights bf16
    done
  fi
fi

join() { local IFS=,; printf '%s' "$*"; }
{
  printf '{"device": "%s", "answer": "%s", "deterministic": %s,\n' "$device" "${answer//[\"\\]/}" \
    "$([ $deterministic = 1 ] && echo true || echo false)"
  printf ' "tests": [%s],\n' "$(join "${rows[@]}")"
  printf ' "benchmarks": [%s],\n' "$(join "${bench_json[@]}")"
  printf ' "failed": %s}\n' "$failed"
} >"$json"
printf '\n%s; results in %s\n' "$([ $failed = 0 ] && echo "all passed" || echo "$failed FAILED")" "$json"
[ $failed = 0 ]
