#!/usr/bin/env bash
# isa_isolation_test.sh NM LIBRARY: no isa_*.cc.o of LIBRARY defines a symbol that the linker sees but
# its table (PortableOps, Avx2Ops, Avx512Ops).
set -eu
defined=$("$1" -A -C --defined-only --extern-only "$2" 2>/dev/null | grep -E ':isa_(portable|avx2|avx512)\.cc\.o:')
tables=$(grep -cE ' T vivarium::kernels::(Portable|Avx2|Avx512)Ops\(\)$' <<<"$defined" || true)
others=$(grep -vE ' T vivarium::kernels::(Portable|Avx2|Avx512)Ops\(\)$' <<<"$defined" || true)
[ "$tables" -ge 1 ] || { echo "no table found in $2"; exit 1; }
[ -z "$others" ] || { printf 'shared between instruction sets:\n%s\n' "$others"; exit 1; }
