"""The measuring half of scripts/compare: runs each program on each engine in turn and prints the table."""
import argparse
import hashlib
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile

SEVLAB = "target/release/sevlab"
# With --quick: how many times qemu's time is a gross regression, on top of a second of start-up and noise.
GROSS = 15


def inputs(folder, quick):
    """Writes the input files; returns the programs as {name: argv}."""
    rng = random.Random(1)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(4000)]
    text = os.path.join(folder, "text")
    size = (1 if quick else 10) << 20
    with open(text, "w") as f:
        n = 0
        while n < size:
            line = " ".join(rng.choice(words) for _ in range(12)) + "\n"
            f.write(line)
            n += len(line)
    script = os.path.join(folder, "script.py")
    with open(script, "w") as f:
        f.write(
            "import json, re, hashlib, zlib, sys\n"
            "data = [{'id': i, 'name': 'n' + str(i), 'v': [j * i for j in range(10)]} for i in range(%d)]\n"
            "text = json.dumps(data)\n"
            "back = json.loads(text)\n"
            "assert back == data\n"
            "print(len(re.findall(r'n\\d+', text)), hashlib.sha256(text.encode()).hexdigest())\n"
            "z = zlib.compress(text.encode(), 6)\n"
            "print(len(z), zlib.adler32(z))\n"
            "d = {}\n"
            "for w in text.split(','):\n"
            "    d[w] = d.get(w, 0) + 1\n"
            "print(len(d), sum(d.values()))\n" % (2000 if quick else 40000)
        )
    c = os.path.join(folder, "unit.i")
    with open(c, "w") as f:
        f.write("typedef unsigned long u64;\nextern int printf(const char *, ...);\n")
        for i in range(60 if quick else 300):
            f.write(
                f"static u64 f{i}(u64 a, u64 b) {{\n  u64 s = {i};\n"
                "  for (u64 i = 0; i < a; i++) {\n    s = s * 31 + (i ^ b);\n"
                f"    if (s % 7 == {i % 7}) s += a << 3; else s -= b;\n  }}\n  return s;\n}}\n"
            )
        f.write("int main(void) {\n  u64 s = 0;\n")
        for i in range(60 if quick else 300):
            f.write(f"  s += f{i}(s & 15, {i});\n")
        f.write('  printf("%lu\\n", s);\n  return 0;\n}\n')
    cc1 = subprocess.run(["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=False).stdout.strip()
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else shutil.which("python3")
    programs = {
        "xz": ["xz", "-6", "-c", "-T1", text],
        "sha256sum": ["sha256sum", text, text, text, text],
        "python3": [python, "-S", script],
        "cc1": [cc1, "-quiet", "-O1", "-fpreprocessed", c, "-o", "-"],
        "chase": ["target/release/chase", "16" if quick else "64", "400000" if quick else "5000000"],
        "stencil": ["target/release/stencil", "64" if quick else "160", "4" if quick else "40"],
    }
    return {k: [shutil.which(v[0]) or v[0], *v[1:]] for k, v in programs.items() if v[0]}


def engines(warm):
    qemu = shutil.which("qemu-x86_64")
    table = {"native": []}
    if qemu:
        table["qemu max"] = [qemu, "-cpu", "max"]
        table["qemu Nehalem"] = [qemu, "-cpu", "Nehalem"]
    else:
        print("qemu-x86_64 is not installed: left out (Debian: apt-get install qemu-user)", file=sys.stderr)
    table["sevlab off"] = [SEVLAB, "run", "--code-cache", "off", "--sev", "off", "--"]
    table["sevlab snp"] = [SEVLAB, "run", "--code-cache", "off", "--sev", "snp", "--"]
    if warm:
        table["sevlab off, warm"] = [SEVLAB, "run", "--code-cache", warm, "--sev", "off", "--"]
    return table


def once(argv):
    """User+system seconds, output digest and status of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, hashlib.sha256(p.stdout).hexdigest(), p.returncode, p.stderr


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--quick", type=int, default=0)
    ap.add_argument("--warm", type=int, default=0)
    ap.add_argument("names", nargs="*")
    args = ap.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        programs = inputs(folder, args.quick)
        chosen = args.names or list(programs)
        unknown = [n for n in chosen if n not in programs]
        if unknown:
            sys.exit(f"compare: no program named {', '.join(unknown)} (there are: {', '.join(programs)})")
        table = engines(os.path.join(folder, "code") if args.warm else None)
        print("| program | " + " | ".join(table) + " |")
        print("|---|" + "---|" * len(table))
        for name in chosen:
            times = {e: [] for e in table}
            for _ in range(args.warm):
                once(table["sevlab off, warm"] + programs[name])
            reference = None
            for _ in range(args.runs):
                for engine, prefix in table.items():
                    cpu, digest, status, err = once(prefix + programs[name])
                    times[engine].append(cpu)
                    if engine == "native":
                        reference = (digest, status)
                    elif (digest, status) != reference:
                        failed.append(f"{name} under {engine}: status {status}, output differs from native's")
                        sys.stderr.write(err.decode(errors="replace")[-2000:])
            median = {e: statistics.median(t) for e, t in times.items()}
            native = max(median["native"], 1e-3)
            cells = [f"{median['native']:.2f} s"]
            for e in list(table)[1:]:
                spread = (max(times[e]) - min(times[e])) / 2 / native
                cells.append(f"{median[e] / native:.1f}x" + (f" ±{spread:.1f}" if args.runs > 1 else ""))
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
            qemu = [median[e] for e in table if e.startswith("qemu")]
            if args.quick and qemu and median["sevlab off"] > GROSS * min(qemu) + 1:
                failed.append(f"{name}: {median['sevlab off']:.1f} s is over {GROSS} times qemu's {min(qemu):.1f} s")
    for f in dict.fromkeys(failed):
        print("FAILED:", f, file=sys.stderr)
    sys.exit(1 if failed else 0)


main()
