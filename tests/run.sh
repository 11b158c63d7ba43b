#!/usr/bin/env bash
# run.sh: installs packages, builds and runs all tests.
#
#   --asan          with AddressSanitizer and UBSan, in build-asan/
#   --tsan          with ThreadSanitizer, in build-tsan/
#   --filter REGEX  only tests whose name matches (ctest -R)
#   --label LABEL   only build and run the tests of a label: fuzz, threads, kernels (repeatable)
#   --exclude REGEX not the tests whose name matches (ctest -E)
#   --jobs N        parallel build jobs and tests (default: the number of cores)
#   --no-install    don't touch packages
#
# VIVARIUM_CUDA=AUTO|ON|OFF in the environment: with the CUDA backend where nvcc is (the default),
# always, never.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

build=build sanitizer="" jobs=$(nproc) install=1 ctest_args=(--no-tests=error) labels=() targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --asan) build=build-asan sanitizer="address,undefined" ;;
    --tsan) build=build-tsan sanitizer="thread" ;;
    --filter) ctest_args+=(-R "${2:?--filter needs a regular expression}"); shift ;;
    --label) labels+=("${2:?--label needs a label}") targets+=("tests_$2"); shift ;;
    --exclude) ctest_args+=(-E "${2:?--exclude needs a regular expression}"); shift ;;
    --jobs) jobs="${2:?--jobs needs a number}"; shift ;;
    --no-install) install=0 ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "run.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
  shift
done

[ ${#labels[@]} = 0 ] || ctest_args+=(-L "^($(IFS='|'; echo "${labels[*]}"))\$")
[ "$install" = 0 ] || deploy/install_packages.sh --test
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DVIVARIUM_SANITIZER="$sanitizer" \
  -DVIVARIUM_CUDA="${VIVARIUM_CUDA:-AUTO}" -DVIVARIUM_BUILD_TESTS=ON \
  > "$build.configure.log" 2>&1 || { cat "$build.configure.log"; exit 1; }
mv "$build.configure.log" "$build/configure.log"
# What one checkout has compiled serves another one at another path.
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1
ninja -C "$build" -j "$jobs" --quiet "${targets[@]}"

# Library internals that ThreadSanitizer can't see into; each suppression says why.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 suppressions=$PWD/tests/tsan.supp halt_on_error=1"
export ASAN_OPTIONS="detect_stack_use_after_return=1"
export UBSAN_OPTIONS="print_stacktrace=1"
ctest --test-dir "$build" --output-on-failure -j "$jobs" --no-tests=error "${ctest_args[@]}"
