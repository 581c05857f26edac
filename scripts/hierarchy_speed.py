"""The measuring half of scripts/hierarchy-speed."""
import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile

SEVLAB = os.environ.get("SEVLAB", "target/release/sevlab")
# Every run translates what it runs.
os.environ["SEVLAB_CODE_CACHE"] = "off"
WORKLOADS = os.environ.get("WORKLOADS", "target/release")


def programs(folder):
    """Programs as {name: (argv, shorter argv)}."""
    rng = random.Random(1)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(4000)]

    def text(name, size):
        path = os.path.join(folder, name)
        n = 0
        with open(path, "w", encoding="utf-8") as f:
            while n < size:
                n += f.write(" ".join(rng.choice(words) for _ in range(12)) + "\n")
        return path

    def unit(name, functions):
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as f:
            for i in range(functions):
                f.write(f"unsigned long f{i}(unsigned long a, unsigned long b) {{ unsigned long s = {i}, i;\n"
                        "  for (i = 0; i < a; i++) { s = s * 31 + (i ^ b);\n"
                        f"    if (s % 7 == {i % 7}) s += a << 3; else s -= b; }}\n  return s; }}\n")
        return path

    big, small = text("big", 24 << 20), text("small", 2 << 20)
    perl = ("my %h; open F, shift; while (<F>) { $h{$_}++ for split } "
            "print join(' ', map { \"$_=$h{$_}\" } (sort { $h{$b} <=> $h{$a} || $a cmp $b } keys %h)[0..9]), \"\\n\"")
    python = ("import sys\nd = {}\nfor w in open(sys.argv[1]).read().split():\n    d[w] = d.get(w, 0) + len(w) / 3\n"
              "print(sum(d.values()), sorted(d)[:5])")
    rows = lambda n: (f"with recursive n(i) as (select 1 union all select i + 1 from n where i < {n}) "
                      "select sum(i * i), max(i % 37), count(*) from n group by i % 5;")
    cc1 = subprocess.run(["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=False).stdout.strip()
    both = {
        "gzip": [["gzip", "-c", "-6", f] for f in (big, small)],
        "sort": [["sort", f] for f in (big, small)],
        "perl": [["perl", "-e", perl, f] for f in (big, small)],
        "python3": [["/usr/bin/python3", "-S", "-E", "-c", python, f] for f in (big, small)],
        "cc1": [[cc1, "-quiet", "-O1", "-fpreprocessed", unit(f"unit{n}.i", n), "-o", "/dev/null"] for n in (1500, 100)],
        "sqlite3": [["sqlite3", ":memory:", rows(n)] for n in (3000000, 200000)],
        "chase": [[f"{WORKLOADS}/chase", m, n] for m, n in (("64", "10000000"), ("16", "1000000"))],
        "stencil": [[f"{WORKLOADS}/stencil", e, n] for e, n in (("160", "80"), ("96", "10"))],
        "gups": [[f"{WORKLOADS}/gups", m, n] for m, n in (("64", "40000000"), ("16", "4000000"))],
        "memcpy": [[f"{WORKLOADS}/memcpy", m, n] for m, n in (("32", "100"), ("8", "20"))],
    }
    return {k: [[shutil.which(a[0]) or a[0], *a[1:]] for a in v] for k, v in both.items() if shutil.which(v[0][0])}


def once(argv, expected):
    """User+system seconds of one run, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if p.returncode != 0 or expected not in (None, p.stdout):
        sys.exit(f"hierarchy-speed: {' '.join(argv)}: status {p.returncode}\n{p.stderr.decode(errors='replace')[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, p.stdout


def medians(engines, runs):
    times = {e: [] for e in engines}
    expected = None
    for _ in range(runs):
        for e, argv in engines.items():
            cpu, expected = once(argv, expected)
            times[e].append(cpu)
    return {e: statistics.median(t) for e, t in times.items()}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("-n", type=int, default=3)
    ap.add_argument("--sev", default="snp")
    ap.add_argument("--cachegrind", action="store_true")
    ap.add_argument("--short", action="store_true")
    ap.add_argument("names", nargs="*")
    args = ap.parse_args()
    valgrind = shutil.which("valgrind")
    if args.cachegrind and not valgrind:
        sys.exit("hierarchy-speed: --cachegrind needs valgrind")
    ratios, factors = [], []
    head, rule = "| program | native | page | hierarchy | ratio |", "|---|---|---|---|---|"
    if args.cachegrind:
        head += " Cachegrind / native | hierarchy / native | faster |"
        rule += "---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        table = programs(folder)
        print(head)
        print(rule)
        for name in args.names or table:
            long, short = table[name]
            guest = short if args.short else long
            run = [SEVLAB, "run", "--sev", args.sev]
            engines = {"native": guest, "page": [*run, "--", *guest],
                       "hierarchy": [*run, "--cache", "hierarchy", "--", *guest]}
            if args.cachegrind:
                engines["same model"] = [SEVLAB, "run", "--cache", "hierarchy", "--model", "cachegrind", "--", *guest]
            t = medians(engines, args.n)
            ratios.append(t["hierarchy"] / t["page"])
            row = f"| {name} | {t['native']:.2f} s | {t['page']:.2f} s | {t['hierarchy']:.2f} s | {ratios[-1]:.2f} |"
            if args.cachegrind:
                out = os.path.join(folder, "cachegrind.out")
                # With --short the native runs above are of the same inputs.
                natively = {} if args.short else {"native": short}
                s = medians({
                    **natively,
                    "valgrind": [valgrind, "-q", "--tool=cachegrind", "--cache-sim=yes", f"--cachegrind-out-file={out}",
                                 "--I1=65536,2,64", "--D1=65536,2,64", "--LL=262144,8,64", *short]}, args.n)
                theirs = s["valgrind"] / max(s.get("native", t["native"]), 0.001)
                ours = t["same model"] / max(t["native"], 0.001)
                factors.append(theirs / ours)
                row += f" {theirs:.0f} | {ours:.0f} | {factors[-1]:.1f} |"
            print(row, flush=True)
        mean = statistics.geometric_mean
        row = f"| geometric mean | | | | {mean(ratios):.2f} |"
        print(row + (f" | | {mean(factors):.1f} |" if factors else ""))


main()
