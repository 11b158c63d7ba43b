# shellcheck shell=bash
# Sourced by make_bundle.sh and make_release.sh: makes a folder of programs independent of the
# libraries of the machine that built it.

# relocate ROOT: puts every library that the programs in ROOT/bin need, but the C library and its
# parts, which belong to the machine, into ROOT/lib, and lets programs and libraries look there,
# wherever the folder lies. Prints the libraries' paths on this machine. Fails when one is left out.
relocate() {
  local root=$1 name path missing
  local of_the_machine='^(ld-linux-x86-64|libc|libm|libdl|librt|libpthread|libresolv|libanl|libutil)\.so'
  mkdir -p "$root/lib"
  ldd "$root"/bin/* | sed -n 's/^[[:space:]]*\(lib[^ ]*\) => \(\/[^ ]*\) .*/\1 \2/p' | sort -u |
    while read -r name path; do
      [[ $name =~ $of_the_machine ]] && continue
      cp -L "$path" "$root/lib/$name"
      chmod 644 "$root/lib/$name"
      strip --strip-unneeded "$root/lib/$name"
      patchelf --set-rpath '$ORIGIN' "$root/lib/$name"
      echo "$path"
    done
  for path in "$root"/bin/*; do
    patchelf --set-rpath '$ORIGIN/../lib' "$path"
  done
  # A library that is found here by luck must be in the folder.
  missing=$(env -i LD_LIBRARY_PATH= ldd "$root"/bin/* | grep -vF "$root" |
            sed -n 's/^[[:space:]]*\(lib[^ ]*\) => .*/\1/p' | sort -u | grep -Ev "$of_the_machine" || true)
  [ -z "$missing" ] || { echo "relocate.sh: not in $root/lib:" $missing >&2; return 1; }
}

# What was built: the commit, for which GPUs, and what the machine must have.
describe_build() {
  echo "commit: $(git rev-parse HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ' (changed)')"
  echo "cuda: $(sed -n 's/^CMAKE_CUDA_ARCHITECTURES:.*=//p' "$1/CMakeCache.txt")"
  echo "glibc: 2.36 or later"
}
