#!/usr/bin/env python3
"""Holds what ptxas says of each kernel against a committed budget.

  ptxas_budget.py [--update] BUDGET FOLDER   # FOLDER: searched for *.ptxas (keep_ptxas_log.sh)

Prints a table. Fails when a kernel spills, or takes registers or static shared memory, beyond its
budget; when a kernel has no budget; and when a budget has no kernel. Registers are counted in
eights, as the hardware hands them out. --update writes the budget anew.
"""
import pathlib
import re
import subprocess
import sys

HEADER = """\
# What each kernel may take, by architecture: the test cuda_ptxas_budget fails beyond it.
# Made by: ninja -C build cuda_ptxas_budget_update
# arch  registers (in eights)  spill stores  spill loads  static shared memory (bytes)  kernel
"""
FIELDS = ("registers", "spill stores", "spill loads", "static shared memory")


def short_name(demangled):
    """`void a::(anonymous namespace)::Kernel<(int)2>(float*)` -> `Kernel<2>`."""
    name = demangled.replace("(anonymous namespace)::", "")
    name = re.sub(r"_GLOBAL__N__\w+::|_INTERNAL_\w+::", "", name)
    name = re.sub(r"\((?:int|long|unsigned int|unsigned long|bool|short)\)", "", name)
    name = name.replace("vivarium::kernels::cuda::", "").replace("vivarium::kernels::", "")
    depth = 0
    for i, c in enumerate(name):  # up to the argument list
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"^void ", "", name).replace(" ", "")


def read_logs(folder):
    """-> {(arch, mangled name): [registers, spill stores, spill loads, static shared memory]}"""
    found = {}
    logs = sorted(pathlib.Path(folder).rglob("*.ptxas"))
    if not logs:
        sys.exit(f"ptxas_budget.py: no *.ptxas under {folder}: expected them from a build with CUDA")
    for log in logs:
        kernel = None
        for line in log.read_text().splitlines():
            if entry := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
                kernel = (entry[2], entry[1])
                found[kernel] = [0, 0, 0, 0]
            elif kernel is None:
                continue
            elif spills := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                # Functions that are called, not inlined, are listed under their kernel.
                found[kernel][1] += int(spills[1])
                found[kernel][2] += int(spills[2])
            elif used := re.search(r"Used (\d+) registers", line):
                found[kernel][0] = (int(used[1]) + 7) // 8 * 8
                if shared := re.search(r"(\d+) bytes smem", line):
                    found[kernel][3] = int(shared[1])
                kernel = None
    if not found:
        sys.exit(f"ptxas_budget.py: {logs[0]} names no kernel: expected the output of -Xptxas=-v")
    mangled = [name for _, name in found]
    demangled = subprocess.run(["c++filt"], input="\n".join(mangled), text=True, check=True,
                               capture_output=True).stdout.splitlines()
    kernels = {}
    for ((arch, _), figures), name in zip(found.items(), demangled):
        key = (short_name(name), arch)
        if key in kernels:
            sys.exit(f"ptxas_budget.py: two kernels are called {key[0]}: expected different names")
        kernels[key] = figures
    return kernels


def read_budget(path):
    budget = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split()
        if len(fields) != 6 or not all(f.isdecimal() for f in fields[1:5]):
            sys.exit(f"{path}:{number}: expected 'arch registers stores loads bytes kernel', "
                     f"found '{line}'")
        budget[(fields[5], fields[0])] = [int(f) for f in fields[1:5]]
    return budget


def row(key, figures):
    return "{:6} {:4} {:5} {:5} {:6}  {}".format(key[1], *figures, key[0])


def complaints(kernels, budget):
    for key, figures in sorted(kernels.items()):
        if key not in budget:
            yield f"{key[0]} on {key[1]} has no budget"
            continue
        for field, used, allowed in zip(FIELDS, figures, budget[key]):
            if used > allowed:
                yield f"{key[0]} on {key[1]}: {field}: {used}, expected at most {allowed}"
    for key in sorted(set(budget) - set(kernels)):
        yield f"{key[0]} on {key[1]} has a budget, but no such kernel was compiled"


def main(arguments):
    update = "--update" in arguments
    paths = [a for a in arguments if a != "--update"]
    if len(paths) != 2:
        sys.exit(__doc__)
    path, kernels = pathlib.Path(paths[0]), read_logs(paths[1])
    table = "\n".join(row(key, kernels[key]) for key in sorted(kernels)) + "\n"
    print(table, end="")
    if update:
        path.write_text(HEADER + table)
        return 0
    wrong = list(complaints(kernels, read_budget(path)))
    for complaint in wrong:
        print(f"OVER BUDGET: {complaint}", file=sys.stderr)
    if wrong:
        print(f"Make the kernel fit, or, where it is meant so, write {path.name} anew and commit it:"
              "\n  ninja -C build cuda_ptxas_budget_update", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
