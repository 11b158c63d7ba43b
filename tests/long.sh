#!/usr/bin/env bash
# long.sh: the long forms of the tests, one after the other, on a quiet machine; one line for each.
#
#   long.sh [--build DIR] [--only REGEX]   default: build; all (about an hour and a half on two cores)
#   long.sh --list                         what there is
#
# The whole output of each is left in BUILD/long/NAME.log.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

build=build only=. list=0
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build="${2:?--build needs a directory}"; shift ;;
    --only) only="${2:?--only needs a regular expression}"; shift ;;
    --list) list=1 ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "long.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
  shift
done

# name | environment | program and arguments | what of its output says how much was done
forms='
kill|VIVARIUM_KILL_ROUNDS=10000|kill_test|kills:
thinning_kill|VIVARIUM_THINNING_KILLS=1000|thinning_kill_test|kills
power_loss|VIVARIUM_POWER_LOSSES=10000|power_loss_test|losses:
io_fault|VIVARIUM_IO_FAULT_STRIDE=1|io_fault_test|operations failed
stored_fuzz|VIVARIUM_FUZZ_ROUNDS=100000|stored_fuzz_test|PASSED
export_fuzz|VIVARIUM_FUZZ_ROUNDS=100000|export_fuzz_test|PASSED
store_model|VIVARIUM_MODEL_OPS=1000000|store_model_test|operations|PASSED
sessions|VIVARIUM_SESSIONS=1000|many_sessions_test|sessions went on
engine_loop|VIVARIUM_LONG_TESTS=1|engine_loop_test|PASSED
'
num_failed=0
while IFS='|' read -r name environment command pattern; do
  [ -n "$name" ] && [[ "$name" =~ $only ]] || continue
  if [ "$list" = 1 ]; then echo "$name: $environment $command"; continue; fi
  mkdir -p "$build/long"
  log="$build/long/$name.log"
  begin=$SECONDS
  # shellcheck disable=SC2086  # the command's words
  if env "$environment" "$build/bin/"$command > "$log" 2>&1; then result=ok; else result=FAILED; fi
  [ "$result" = ok ] || num_failed=$((num_failed + 1))
  summary=$(grep -E "$pattern" "$log" | grep -v '^\[ RUN' | sed 's/^\[  PASSED  \] /passed: /' | paste -sd ';' -)
  printf '%-14s %-6s %5d s  %s\n' "$name" "$result" $((SECONDS - begin)) "$summary"
done <<< "$forms"
exit $((num_failed > 0))
