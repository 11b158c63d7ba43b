#!/usr/bin/env bash
# install_packages.sh [--test]: installs what is missing of deploy/packages.txt (Debian 12).
# With --test, also the packages that only building and running the tests needs.
set -euo pipefail
list="$(dirname "$(readlink -f "$0")")/packages.txt"
wanted=$(if [ "${1:-}" = --test ]; then cat "$list"; else sed '/^# test:/,$d' "$list"; fi |
         sed 's/#.*//' | xargs)
missing=$(for package in $wanted; do
  dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
    echo "$package"
done)
[ -n "$missing" ] || exit 0
echo "installing:" $missing
as_root=""
if [ "$(id -u)" != 0 ]; then
  as_root=sudo
  command -v sudo >/dev/null || { echo "install_packages.sh: needs root or sudo for apt-get" >&2; exit 1; }
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# shellcheck disable=SC2086
$as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
