#!/usr/bin/env bash
# clang_check.sh thread-safety|tidy: checks with clang 14 over build/compile_commands.json.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

case "${1:-}" in
  thread-safety)
    # Every product source, compiled for its diagnostics only.
    python3 - <<'PY' | xargs -P "$(nproc)" -d '\n' -n 1 sh -c
import json, os, re, shlex
for entry in json.load(open("build/compile_commands.json")):
    path = os.path.relpath(entry["file"])
    if not re.match(r"(kernels|engine|statestore|server|cli)/.*\.cc$", path):
        continue
    words = shlex.split(entry["command"])
    args = []
    for i, word in enumerate(words):
        if word.startswith(("-D", "-I", "-std", "-m")):
            args.append(word)
        elif word == "-isystem":
            args += [word, words[i + 1]]
    print(f"cd {shlex.quote(entry['directory'])} && clang++-14 -fsyntax-only -w -Wthread-safety -Werror=thread-safety "
          + " ".join(map(shlex.quote, args)) + " " + shlex.quote(entry["file"]))
PY
    ;;
  tidy)
    base=${VIVARIUM_TIDY_BASE:-HEAD~1}
    git diff --name-only --diff-filter=d "$base" HEAD -- '*.cc' |
      xargs -r -P "$(nproc)" -n 1 clang-tidy-14 -p build --quiet --extra-arg=-Wno-unknown-warning-option 2> >(grep -v 'warnings generated' >&2)
    ;;
  *) echo "usage: clang_check.sh thread-safety|tidy" >&2; exit 2 ;;
esac
