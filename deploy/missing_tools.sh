#!/usr/bin/env bash
# missing_tools.sh COMMAND...: fails, naming them, when commands are not there. For the tests that
# need more than tests/run.sh does; nothing is installed.
set -euo pipefail
missing=$(for command in "$@"; do command -v "$command" >/dev/null || echo "$command"; done | xargs)
[ -z "$missing" ] && exit 0
echo "missing: $missing; what the tests in deploy/ need beside deploy/packages.txt is in" >&2
echo "deploy/packages-deploy.txt: apt-get install --no-install-recommends \\" >&2
echo "  $(sed 's/#.*//' "$(dirname "$(readlink -f "$0")")/packages-deploy.txt" | xargs)" >&2
exit 1
