#!/usr/bin/env bash
# package_test.sh [--build DIR] [--no-build] [--base TAR]: the release archive and the Debian package, each in a
# root with nothing but Debian's minimal base (made by mmdebstrap; needs root and a Debian mirror).
#
# Archive: unpacked anywhere, it serves, is killed, resumes exactly. Package: installs with its
# dependencies, does the same as an unprivileged user, keeps a changed configuration over a
# reinstallation; a purge leaves no file of it but the saved states.
#
#   --build DIR   the build folder (default: build)
#   --no-build    take the archive and the package that are there
#   --base TAR    the minimal base, from `mmdebstrap --variant=minbase bookworm TAR`; made if absent
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

build=build build_first=1 base=""
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?--build needs a folder}; shift ;;
    --no-build) build_first=0 ;;
    --base) base=${2:?--base needs a tar file}; shift ;;
    -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "package_test.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
  shift
done
deploy/missing_tools.sh mmdebstrap unshare chroot patchelf cpack
[ "$(id -u)" = 0 ] || { echo "package_test.sh: needs root for chroot" >&2; exit 1; }

step() { printf '\n=== %s (%s s)\n' "$1" "$SECONDS"; }
fail() { echo "package_test.sh: $*" >&2; exit 1; }

if [ $build_first = 1 ]; then
  step "build"
  cmake -S . -B "$build" -G Ninja >/dev/null
  ninja -C "$build" --quiet deb release
fi
archive=$(ls "$build"/vivarium-*-linux-x86_64.tar.gz)
package=$(ls "$build"/vivarium_*_amd64.deb)

work=$(mktemp -d)
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT
# Runs a command in the root, with processes and mounts of its own that end with it.
in_root() {
  unshare --mount --pid --fork --kill-child --propagation private bash -c '
    mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$0" "$@"' "$root" \
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive HOME=/root "$@"
}

step "a clean root"
base=${base:-$work/base.tar}
[ -s "$base" ] || mmdebstrap --quiet --variant=minbase bookworm "$base"
mkdir "$root"
tar -C "$root" -xf "$base"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp deploy/exact_resume.sh "$root/srv/"

step "the archive: $(basename "$archive")"
(cd "$(dirname "$archive")" && sha256sum --check --quiet "$(basename "$archive").sha256")
mkdir -p "$root/srv/any where"
tar -C "$root/srv/any where" -xf "$archive"
program="/srv/any where/$(basename "$archive" .tar.gz)/bin/vivarium"
in_root "$program" version
in_root bash /srv/exact_resume.sh "$program" --threads 1
rm -r "$root/srv/any where"

step "the package: $(basename "$package")"
cp "$package" "$root/root/vivarium.deb"
in_root apt-get update -qq
in_root apt-get install -y -qq --no-install-recommends /root/vivarium.deb >"$work/apt.log" 2>&1 ||
  { cat "$work/apt.log" >&2; fail "the package does not install"; }
in_root vivarium version
in_root dpkg --verify vivarium
[ "$(in_root dpkg-query -W -f '${Conffiles}' vivarium | grep -c /etc/vivarium/vivarium.toml)" = 1 ] ||
  fail "/etc/vivarium/vivarium.toml is no conffile"
in_root vivarium config check /etc/vivarium/vivarium.toml
for file in /usr/lib/systemd/system/vivarium.service /usr/share/man/man1/vivarium.1 \
    /usr/share/bash-completion/completions/vivarium /usr/share/zsh/vendor-completions/_vivarium \
    /usr/share/fish/vendor_completions.d/vivarium.fish; do
  [ -s "$root$file" ] || fail "the package has no $file"
done
in_root setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
  bash /srv/exact_resume.sh vivarium --threads 1 2>"$work/as_nobody.log" ||
  { cat "$work/as_nobody.log" >&2; fail "it does not do its job as an unprivileged user"; }

step "the systemd unit"
in_root apt-get install -y -qq --no-install-recommends systemd >"$work/apt.log" 2>&1 ||
  { cat "$work/apt.log" >&2; fail "systemd does not install"; }
in_root systemd-analyze verify --man=no vivarium.service
in_root systemd-analyze security --offline=true --no-pager --threshold=20 vivarium.service |
  tail -n 1

step "installed again over a changed configuration"
echo '# changed by the administrator' >>"$root/etc/vivarium/vivarium.toml"
in_root apt-get install -y -qq --reinstall /root/vivarium.deb >"$work/apt.log" 2>&1 ||
  { cat "$work/apt.log" >&2; fail "the package does not reinstall"; }
grep -q 'changed by the administrator' "$root/etc/vivarium/vivarium.toml" ||
  fail "a reinstallation overwrote the configuration"

step "purge"
mkdir -p "$root/var/lib/vivarium/store"
in_root dpkg -L vivarium | sed '/^\/\.$/d' >"$work/files"
in_root apt-get purge -y -qq vivarium >"$work/apt.log" 2>&1 ||
  { cat "$work/apt.log" >&2; fail "the package does not purge"; }
grep -q 'saved states are kept in /var/lib/vivarium' "$work/apt.log" ||
  fail "the purge does not say where the states are"
[ -d "$root/var/lib/vivarium/store" ] || fail "the purge dropped the states"
while read -r file; do
  case "$file" in *vivarium*) [ ! -e "$root$file" ] || fail "the purge left $file" ;; esac
done <"$work/files"

step "the archive and the package work"
