#!/usr/bin/env bash
# make_bundle.sh [--build DIR] [--no-build] [OUTPUT]: a folder that runs elsewhere, as one file.
#
# Packs the server, the bundled model, the tests and benchmarks that say something about a device,
# their data, and every library that they need but libc, into OUTPUT (default: DIR/vivarium-bundle
# .tar.gz; .tar.zst by its name). It runs on any x86-64 Linux with glibc 2.36 or later; with a GPU
# that needs its driver alone. Unpack it, then: tests/device_check.sh
#
#   --build DIR   the build folder (default: build); its programs are built first
#   --no-build    pack its programs as they are
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
export LC_ALL=C
. deploy/relocate.sh

build=build output="" build_first=1
max_bytes=60000000
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?--build needs a folder}; shift ;;
    --no-build) build_first=0 ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) echo "make_bundle.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
    *) output=$1 ;;
  esac
  shift
done
output=${output:-$build/vivarium-bundle.tar.gz}
command -v patchelf >/dev/null || { echo "make_bundle.sh: needs patchelf (deploy/install_packages.sh --test)" >&2; exit 1; }

# What tests/device_check.sh runs, and the server.
programs=(vivarium kernels_test device_test golden_test model_invariants_test model_reference_test
          real_model_test server_test exact_resume_test device_change_test kill_test kill_writer
          kernel_bench engine_bench)
if [ $build_first = 1 ]; then
  # The folder may have been made without tests (quickstart.sh).
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DVIVARIUM_BUILD_TESTS=ON \
    -DVIVARIUM_CUDA="${VIVARIUM_CUDA:-AUTO}" > /dev/null
  ninja -C "$build" --quiet "${programs[@]}"
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/vivarium-bundle
mkdir -p "$root"/{bin,models,cli,tests}
for program in "${programs[@]}"; do
  strip -o "$root/bin/$program" "$build/bin/$program"
  chmod 755 "$root/bin/$program"
done

relocate "$root" >/dev/null

cp -R models/vivarium-stories models/LICENSE "$root/models/"
mkdir -p "$root/tests/data"
cp -R tests/data/goldens tests/data/statestore "$root/tests/data/"
cp tests/device_check.sh "$root/tests/"
cp cli/vivarium.1 "$root/cli/"
describe_build "$build" >"$root/BUNDLE"

mkdir -p "$(dirname "$output")"
case "$output" in
  *.tar.zst) compress=(zstd -q -12) ;;
  *) compress=(gzip) ;;
esac
tar -C "$stage" --sort=name --owner=0 --group=0 -c vivarium-bundle | "${compress[@]}" >"$output"
bytes=$(stat -c %s "$output")
echo "$output: $bytes bytes, unpacked $(du -sb "$root" | cut -f1)"
[ "$bytes" -le "$max_bytes" ] || { echo "make_bundle.sh: expected at most $max_bytes bytes" >&2; exit 1; }
