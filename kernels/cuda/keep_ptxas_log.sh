#!/usr/bin/env bash
# keep_ptxas_log.sh COMPILER ARGUMENTS: runs the compiler, and keeps what ptxas says of each kernel
# (-Xptxas=-v) beside the object file, as OBJECT.ptxas. The rest of stderr passes through.
set -uo pipefail
object="" previous=""
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
[[ $object == *.o ]] || exec "$@"
messages=$(mktemp "$object.XXXXXX") || exit 1
trap 'rm -f "$messages"' EXIT
"$@" 2>"$messages"
status=$?
ptxas='^ptxas info|^ *[0-9]+ bytes stack frame|^ptxas \. '
grep -Ev "$ptxas" "$messages" >&2
if [ $status = 0 ]; then grep -E "$ptxas" "$messages" >"$object.ptxas"; fi
exit $status
