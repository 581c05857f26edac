"""The measuring half of scripts/cachegrind: runs, reads both simulators' counts, prints the table."""
import json
import os
import random
import subprocess
import sys
import tempfile

SEVLAB = os.environ.get("SEVLAB", "target/release/sevlab")
GEOMETRY = ["--I1=32768,8,64", "--D1=32768,8,64", "--LL=8388608,16,64"]
MODEL = ["l1i.size=32KiB", "l1i.ways=8", "l1d.size=32KiB", "l1d.ways=8", "llc.size=8MiB", "llc.ways=16"]
# So that the C library chooses the same memcpy and strcmp, whatever CPUID says.
ENVIRONMENT = {"PATH": os.environ["PATH"], "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-ERMS,-FSRM,-AVX2,-AVX2_Usable"}
NAMES = ["chase", "stencil", "gups", "memcpy", "crossing", "sort", "compress", "rep", "code", "lines"]
# Whole static programs, if they are installed (Debian: busybox-static, bash-static), over a text of 5,000 lines.
SCRIPT = "i=0; s=0; while [ $i -lt 3000 ]; do case $i in *7*) s=$((s + i));; *) a[$((i % 50))]=x$i;; esac; i=$((i + 1)); done; echo $s ${a[@]}"
COUNT = "{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) if (n[w] > 120) print w, n[w] }"
REAL = {
    "busybox sort": ["/bin/busybox", "sort", "TEXT"],
    "busybox gzip": ["/bin/busybox", "gzip", "-c", "TEXT"],
    "busybox awk": ["/bin/busybox", "awk", COUNT, "TEXT"],
    "bash": ["/bin/bash-static", "-c", SCRIPT],
}
# Relative differences that are an error. References: see docs/cachegrind.md.
LIMITS = {"Ir": 0.01, "I1 misses": 0.01, "D refs": 0.02, "D1 misses": 0.01, "LL misses": 0.01}
# Of whole programs, whose heap and stack are not where the other simulator has them, misses are only printed.
WHOLE = ["Ir", "D refs"]
# What starting and ending differs by: the C library asks CPUID another number of times, the kernels put other things on the stack.
START = {"Ir": 20000, "I1 misses": 200, "D refs": 5000, "D1 misses": 200, "LL misses": 200}


def run(argv, **more):
    p = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL, env=ENVIRONMENT, **more)
    if p.returncode != 0:
        sys.exit(f"cachegrind: {' '.join(argv)}: status {p.returncode}\n{p.stderr.decode(errors='replace')[-2000:]}")
    return p.stdout


def cachegrind(argv, folder):
    out = os.path.join(folder, "out")
    said = run(["valgrind", "--tool=cachegrind", "--cache-sim=yes", f"--cachegrind-out-file={out}", *GEOMETRY, *argv])
    events, summary = [], []
    with open(out, encoding="utf-8") as f:
        for line in f:
            if line.startswith("events:"):
                events = line.split()[1:]
            elif line.startswith("summary:"):
                summary = [int(n) for n in line.split()[1:]]
    c = dict(zip(events, summary))
    return said, {
        "Ir": c["Ir"],
        "I1 misses": c["I1mr"],
        "D refs": c["Dr"] + c["Dw"],
        "D1 misses": c["D1mr"] + c["D1mw"],
        "LL misses": c["ILmr"] + c["DLmr"] + c["DLmw"],
    }


def sevlab(argv, folder):
    report = os.path.join(folder, "report.json")
    sets = [word for s in MODEL for word in ("--set", s)]
    said = run([SEVLAB, "run", "--cache", "hierarchy", "--model", "cachegrind", *sets, "--report", report, "--", *argv])
    with open(report, encoding="utf-8") as f:
        s = json.load(f)["stats"]["simulation"]
    data = lambda c, what: sum(s["caches"][c][what].get(k, 0) for k in ("reads", "writes"))
    fetches = lambda c: s["caches"][c]["misses"].get("fetches", 0)
    return said, {
        # Every instruction costs 1, every iteration of a repeated one beyond the first 1 more.
        "Ir": s["instruction_cycles"],
        "I1 misses": fetches("l1i"),
        "D refs": data("l1d", "accesses"),
        "D1 misses": data("l1d", "misses"),
        "LL misses": fetches("llc") + data("llc", "misses"),
    }


def main():
    names = sys.argv[1:] or [*NAMES, *(n for n, argv in REAL.items() if os.path.exists(argv[0]))]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "programs")
        source = "scripts/cachegrind.d/programs.c"
        run(["cc", "-O2", "-fno-tree-vectorize", "-static", "-no-pie", "-w", source, "-o", program])
        text = os.path.join(folder, "text")
        with open(text, "w", encoding="ascii") as f:
            r = random.Random(1)
            words = ["".join(r.choice("abcdefghijklmnopqrst") for _ in range(r.randint(2, 9))) for _ in range(500)]
            f.writelines(" ".join(r.choice(words) for _ in range(10)) + "\n" for _ in range(5000))
        print("| program | count | Cachegrind | sevlab | difference |")
        print("|---|---|---|---|---|")
        for name in names:
            argv = [text if a == "TEXT" else a for a in REAL.get(name, [program, name])]
            (said, theirs), (said_too, ours) = cachegrind(argv, folder), sevlab(argv, folder)
            if said != said_too:
                failed.append(f"{name}: it printed {said_too!r} instead of {said!r}")
            for count, n in theirs.items():
                off = ours[count] - n
                print(f"| {name} | {count} | {n:,} | {ours[count]:,} | {off:+,} ({100 * off / max(n, 1):+.2f}%) |", flush=True)
                if count in (WHOLE if name in REAL else LIMITS) and abs(off) > LIMITS[count] * n + START[count]:
                    failed.append(f"{name}: {count} differ by {off:+,}")
    for f in failed:
        print("FAILED:", f, file=sys.stderr)
    sys.exit(1 if failed else 0)


main()
