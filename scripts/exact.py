"""The measuring half of scripts/exact: runs each case twice and compares."""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

SEVLAB = os.environ.get("SEVLAB", "target/release/sevlab")
WORKLOADS = os.environ.get("WORKLOADS", "target/release")
# Caches so small that every program overflows them, four ways each so that every policy can be theirs.
SMALL = ["l1i.size=4KiB", "l1i.ways=4", "l1d.size=4KiB", "l1d.ways=4", "l2.size=16KiB", "l2.ways=4", "llc.size=128KiB", "llc.ways=8"]
POLICIES = ["lru", "tree-plru", "nru", "fifo", "random"]
LEVELS = ["l1i", "l1d", "l2", "llc"]
TLB_SMALL = ["tlb.l1i.entries=8", "tlb.l1i.ways=4", "tlb.l1d.entries=8", "tlb.l1d.ways=4", "tlb.l2.entries=32", "tlb.l2.ways=4",
             "tlb.walk_entries=2", "tlb.nested_entries=4"]


def machines():
    """Simulated machines as {name: (sev, model, sets)}."""
    table = {
        "milan": ("snp", "epyc-milan", []),
        "naples": ("sev", "epyc-naples", []),
        "rome": ("es", "epyc-rome", []),
        "genoa": ("snp", "epyc-genoa", []),
        "cachegrind": ("off", "cachegrind", []),
        "small": ("snp", "epyc-milan", SMALL),
        "inclusive": ("sev", "epyc-milan", SMALL + ['llc_inclusion="inclusive"']),
        "non-inclusive": ("sev", "epyc-milan", SMALL + ['llc_inclusion="non-inclusive"']),
        "no-l2": ("snp", "epyc-milan", [s for s in SMALL if not s.startswith("l2")] + ["l2=none"]),
        "next-line": ("snp", "epyc-milan", SMALL + ["prefetch.next_line=true", "prefetch.stride=false"]),
        "stride": ("off", "epyc-milan", SMALL + ["prefetch.next_line=false", "prefetch.stride=true", "prefetch.degree=3"]),
        "both-prefetchers": ("snp", "epyc-milan", SMALL + ["prefetch.next_line=true", "prefetch.stride=true"]),
        "no-prefetch": ("snp", "epyc-milan", SMALL + ["prefetch.next_line=false", "prefetch.stride=false"]),
        "banks": ("snp", "epyc-milan", SMALL + ['dram.model="banks"', "dram.channels=2", "dram.banks=4", "dram.line_ns=30",
                                                "latency.dram_row_ns=20", "latency.aes_line_ns=40"]),
        "aes-queue": ("sev", "epyc-milan", SMALL + ['dram.model="flat"', "latency.aes_line_ns=200"]),
        "no-tlb": ("snp", "epyc-milan", SMALL + ["tlb=none"]),
        "small-tlb": ("snp", "epyc-milan", SMALL + TLB_SMALL),
        "direct-mapped": ("es", "epyc-milan", SMALL + [f"{c}.ways=1" for c in LEVELS]),
        "costs": ("snp", "epyc-milan", ["cost.branch=2", "cost.mul=5", "cost.div=31", "cost.fp=7", "cost.fp_div=11", "cost.x87=13",
                                        "cost.vector=17", "cost.crypto=19", "cost.locked=23", "cost.fence=29", "cost.rep=3",
                                        "latency.l1d_cycles=4", "latency.l1i_cycles=6"]),
    }
    for policy in POLICIES:
        table[f"all-{policy}"] = ("snp", "epyc-milan", SMALL + [f'{c}.policy="{policy}"' for c in LEVELS])
        for level in LEVELS:
            table[f"{level}-{policy}"] = ("sev", "epyc-milan", SMALL + [f'{level}.policy="{policy}"'])
        table[f"tlb2-{policy}"] = ("snp", "epyc-milan", SMALL + TLB_SMALL + [f'tlb.l2.policy="{policy}"'])
    for i, policy in enumerate(POLICIES):
        for j, sev in enumerate(["off", "sev", "es", "snp"]):
            inclusion = ["inclusive", "non-inclusive"][(i + j) % 2]
            table[f"{policy}-{sev}"] = (sev, "epyc-milan", SMALL + [f'{c}.policy="{policy}"' for c in LEVELS] + [
                f'llc_inclusion="{inclusion}"', "prefetch.next_line=true", "prefetch.stride=true"])
    for policy in ["fifo", "random"]:
        table[f"tlb1-{policy}"] = ("snp", "epyc-milan", SMALL + TLB_SMALL + [f'tlb.l1{s}.policy="{policy}"' for s in "id"])
    return table


def programs(folder, quick):
    """Programs as {name: argv}, their inputs written."""
    rng = random.Random(1)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(2000)]
    lines = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(200 if quick else 2000)]
    text = os.path.join(folder, "text")
    with open(text, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
    unit = os.path.join(folder, "unit.i")
    with open(unit, "w", encoding="utf-8") as f:
        for i in range(1 if quick else 6):
            f.write(f"unsigned long f{i}(unsigned long a, unsigned long b) {{ unsigned long s = {i}, i;\n"
                    "  for (i = 0; i < a; i++) { s = s * 31 + (i ^ b);\n"
                    f"    if (s % 7 == {i}) s += a << 3; else s -= b; }}\n  return s; }}\n")
    rows = 30 if quick else 600
    sql = (f"with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows}) "
           "select sum(i * i), max(i % 37), count(*) from n group by i % 5;")
    perl = ("my %h; open F, shift; while (<F>) { $h{$_}++ for split } "
            "print join(' ', map { \"$_=$h{$_}\" } (sort { $h{$b} <=> $h{$a} || $a cmp $b } keys %h)[0..9]), \"\\n\"")
    python = ("import sys\nd = {}\nfor w in open(sys.argv[1]).read().split():\n    d[w] = d.get(w, 0) + len(w) / 3\n"
              "print(sum(d.values()), sorted(d)[:5])")
    cc1 = subprocess.run(["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=False).stdout.strip()
    n = 1 if quick else 10
    table = {
        "gzip": ["gzip", "-c", "-6", text],
        "sort": ["sort", text],
        "perl": ["perl", "-e", perl, text],
        "python3": ["/usr/bin/python3", "-S", "-E", "-c", python, text],
        "cc1": [cc1, "-quiet", "-O1", "-fpreprocessed", unit, "-o", "-"],
        "sqlite3": ["sqlite3", ":memory:", sql],
        "git": ["git", "hash-object", text],
        "chase": [f"{WORKLOADS}/chase", "1", str(10000 * n)],
        "stencil": [f"{WORKLOADS}/stencil", "16" if quick else "32", str(n)],
        "gups": [f"{WORKLOADS}/gups", "1", str(10000 * n)],
        "memcpy": [f"{WORKLOADS}/memcpy", "1", "1" if quick else "2"],
    }
    if shutil.which("sqlite3"):
        del table["git"]
    else:
        del table["sqlite3"]
    return {k: [shutil.which(v[0]) or v[0], *v[1:]] for k, v in table.items()}


def cases(names, quick):
    """(program, machine, whether it is of full size): all programs on each policy and level of protection, on a real machine and
    with small TLBs; every other machine with two programs."""
    progs = list(names)
    if quick:
        few = ["gzip", "sort", "chase", "gups", "stencil"]
        for i, m in enumerate(["milan", "small", "no-l2", "both-prefetchers", "banks", "small-tlb", "non-inclusive", "costs",
                               "all-lru", "all-tree-plru", "all-nru", "all-fifo", "all-random", "cachegrind", "no-tlb"]):
            yield few[i % len(few)], m, False
        return
    matrix = [f"{policy}-{sev}" for policy in POLICIES for sev in ["off", "sev", "es", "snp"]]
    for m in matrix:
        for p in progs:
            yield p, m, False
    for p in progs:
        yield p, "milan", True
        yield p, "small-tlb", False
    rest = [m for m in machines() if m not in [*matrix, "milan", "small-tlb"]]
    for i, m in enumerate(rest):
        yield progs[i % len(progs)], m, False
        yield progs[(3 * i + 5) % len(progs)], m, False


def run(options, argv, report):
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "/nonexistent"}
    p = subprocess.run([SEVLAB, "run", *options, "--report", report, "--", *argv], capture_output=True, check=False,
                       stdin=subprocess.DEVNULL, env=environment)
    try:
        with open(report, encoding="utf-8") as f:
            counts = json.load(f)["stats"]["simulation"]
        os.unlink(report)
    except (OSError, ValueError):
        counts = None
    return p, counts


def leaves(tree, path=""):
    if isinstance(tree, dict):
        for k, v in tree.items():
            yield from leaves(v, f"{path}.{k}" if path else k)
    else:
        yield path, tree


def main():
    args = [a for a in sys.argv[1:] if not a.startswith("--")]
    quick = "--quick" in sys.argv
    table = machines()
    failed = 0
    done = compared = instructions = 0
    of_program, of_machine = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for full in [False] if quick else [False, True]:
            inputs = os.path.join(folder, str(full))
            os.mkdir(inputs)
            sizes[full] = programs(inputs, not full)
        progs = sizes[False]
        chosen = list(cases(progs, quick))
        wanted_p, wanted_m = [a for a in args if a in progs], [a for a in args if a in table]
        unknown = set(args) - set(progs) - set(table)
        if unknown:
            sys.exit(f"exact: neither a program nor a machine: {', '.join(sorted(unknown))}")
        if wanted_p and wanted_m:
            chosen = [(p, m, not quick) for p in wanted_p for m in wanted_m]
        elif args:
            chosen = [c for c in chosen if c[0] in wanted_p or c[1] in wanted_m]
        if "--list" in sys.argv:
            print("programs:", *progs)
            print("machines:", *table)
            return
        print("| program | machine | instructions | L1D | L2 | LLC | walks | counts | |")
        print("|---|---|---|---|---|---|---|---|---|")
        for program, machine, full in chosen:
            argv = sizes[full][program]
            sev, model, sets = table[machine]
            options = ["--cache", "hierarchy", "--model", model, "--sev", sev]
            for s in sets:
                options += ["--set", s]
            report = os.path.join(folder, "report.json")
            fast, counts = run(options, argv, report)
            slow, reference = run([*options, "--jit", "off", "--check"], argv, report)
            wrong = []
            if counts is None or fast.returncode not in (0, 1):
                wrong.append(f"translated: status {fast.returncode}: {fast.stderr.decode(errors='replace')[-1500:]}")
            elif reference is None:
                wrong.append(f"reference: status {slow.returncode}: {slow.stderr.decode(errors='replace')[-1500:]}")
            else:
                if slow.returncode != fast.returncode or slow.stdout != fast.stdout:
                    wrong.append(f"interpreted and reference: status {slow.returncode}, not {fast.returncode}: "
                                 + slow.stderr.decode(errors="replace")[-3000:])
                a, b = dict(leaves(counts)), dict(leaves(reference))
                for k in sorted(a.keys() | b.keys()):
                    if a.get(k) != b.get(k):
                        wrong.append(f"{k}: {a.get(k)} translated, {b.get(k)} interpreted")
            done += 1
            compared += 0 if counts is None else len(list(leaves(counts)))
            instructions += (counts or {}).get("instructions", 0)
            of_program.setdefault(program, []).append(not wrong)
            of_machine.setdefault(machine, []).append(not wrong)
            if counts is None:
                counts = {}
            caches = counts.get("caches", {})
            cell = lambda c: f"{sum(caches[c]['misses'].values()):,}" if c in caches else ""
            walks = counts.get("tlb", {})
            verdict = "equal" if not wrong else "**differ**"
            print(f"| {program} | {machine} | {counts.get('instructions', 0):,} | {cell('l1d')} | {cell('l2')} | {cell('llc')} | "
                  f"{walks.get('data_walks', 0) + walks.get('fetch_walks', 0):,} | {len(list(leaves(counts)))} | {verdict} |", flush=True)
            if wrong:
                failed += 1
                for w in wrong[:12]:
                    print(f"FAILED: {program} on {machine}: {w}", file=sys.stderr, flush=True)
    for what, results in [("program", of_program), ("machine", of_machine)]:
        print(f"\n| {what} | cases | equal |\n|---|---|---|")
        for name, equal in results.items():
            print(f"| {name} | {len(equal)} | {sum(equal)} |")
    print(f"\n{done} cases of {instructions:,} instructions, {compared:,} counts compared: {failed} cases differ")
    sys.exit(1 if failed else 0)


main()
