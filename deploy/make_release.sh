#!/usr/bin/env bash
# make_release.sh [--build DIR] [OUTPUT]: the program as one archive that runs where it is unpacked.
#
# What `cmake --install` lays out (bin, man page, completions, bundled model, config, unit), with
# every library but libc in lib/, on any x86-64 Linux with glibc 2.36 or later. OUTPUT (default:
# DIR/vivarium-VERSION-linux-x86_64.tar.gz; .tar.zst by its name) gets a .sha256 beside it. The same
# build gives the same bytes.
#
#   --build DIR   the build folder (default: build), with the program built: `ninja release`
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
export LC_ALL=C
. deploy/relocate.sh

build=build output=""
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?--build needs a folder}; shift ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) echo "make_release.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
    *) output=$1 ;;
  esac
  shift
done
command -v patchelf >/dev/null || { echo "make_release.sh: needs patchelf (deploy/install_packages.sh --test)" >&2; exit 1; }
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
name=vivarium-$version-linux-x86_64
output=${output:-$build/$name.tar.gz}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/$name
cmake --install "$build" --strip --prefix "$root" >/dev/null
relocate "$root" >"$stage/libraries"

# Where each library comes from, and under which terms: one line, and one file, a Debian package.
doc=$root/share/doc/vivarium
mkdir -p "$doc/licenses"
while read -r path; do
  file=$(readlink -f "$path")
  # Some packages name their files by /lib, which is /usr/lib.
  package=$(dpkg-query -S "$file" "${file#/usr}" 2>/dev/null | cut -d: -f1 | head -n 1 || true)
  [ -n "$package" ] || { echo "make_release.sh: $file belongs to no package" >&2; exit 1; }
  echo "$package $(dpkg-query -W -f '${Version} ${source:Package}' "$package:amd64")"
  cp "/usr/share/doc/$package/copyright" "$doc/licenses/$package"
done <"$stage/libraries" | sort -u >"$doc/libraries.txt"
describe_build "$build" >"$doc/BUILD"

case "$output" in
  *.tar.zst) compress=(zstd -q -12) ;;
  *) compress=(gzip -n) ;;
esac
mkdir -p "$(dirname "$output")"
tar -C "$stage" --sort=name --owner=0 --group=0 --mtime="@$(git log -1 --format=%ct 2>/dev/null || echo 0)" \
  --mode='go-w' -c "$name" | "${compress[@]}" >"$output"
(cd "$(dirname "$output")" && sha256sum "$(basename "$output")" >"$(basename "$output").sha256")
echo "$output: $(stat -c %s "$output") bytes, unpacked $(du -sb "$root" | cut -f1)"
