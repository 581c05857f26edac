"""The programs of scripts/programs. A case's folder beside this file, if it has one, is what its scratch folder starts as."""
import dataclasses
import os
import random
from typing import Callable, Optional


@dataclasses.dataclass
class Case:
    name: str
    about: str
    run: list  # the command; $WORKLOADS and the like are replaced
    needs: dict = dataclasses.field(default_factory=dict)  # command or file: Debian package ("" if none has it)
    folder: str = ""  # of its files; its name without one
    setup: Optional[Callable] = None  # makes larger inputs
    stdout: bool = True  # what is compared
    stderr: bool = True
    files: bool = True
    ignore: list = dataclasses.field(default_factory=list)  # files that differ between native runs
    status: Optional[int] = 0  # that a native run must have
    quick: bool = False
    timeout: float = 600

    def __post_init__(self):
        self.folder = self.folder or self.name


def text(folder, name, size, seed=1):
    """Text of words, some of them more frequent than others."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(3000)]
    with open(os.path.join(folder, name), "w") as f:
        n = 0
        while n < size:
            line = " ".join(words[int(rng.random() ** 2 * 3000)] for _ in range(10)) + "\n"
            f.write(line)
            n += len(line)


def texts(size):
    return lambda folder: text(folder, "text", size)


def folders(folder):
    """A tree with files of all sorts."""
    rng = random.Random(7)
    for i in range(40):
        sub = os.path.join(folder, "tree", f"d{i % 7}", f"e{i % 3}")
        os.makedirs(sub, exist_ok=True)
        path = os.path.join(sub, f"f{i}")
        with open(path, "wb") as f:
            f.write(rng.randbytes(rng.choice([0, 1, 100, 4096, 70_000])))
        os.chmod(path, rng.choice([0o600, 0o644, 0o755]))
        if i % 9 == 0:
            os.symlink(f"f{i}", path + ".link")
        if i % 11 == 0:
            os.link(path, path + ".hard")
    os.makedirs(os.path.join(folder, "tree", "empty"))
    with open(os.path.join(folder, "tree", "a name with spaces é"), "w") as f:
        f.write("x\n")


def project(folder):
    """Twelve C files and what they make together."""
    for i in range(12):
        with open(os.path.join(folder, f"part{i}.c"), "w") as f:
            f.write('#include "parts.h"\n')
            for k in range(20):
                f.write(f"static unsigned long f{k}(unsigned long a) {{ for (int i = 0; i < {k + 3}; i++) a = a * {2 * k + 3} + {i}; return a; }}\n")
            f.write(f"unsigned long part{i}(unsigned long a) {{ return " + " ^ ".join(f"f{k}(a + {k})" for k in range(20)) + "; }\n")
    with open(os.path.join(folder, "parts.h"), "w") as f:
        for i in range(12):
            f.write(f"unsigned long part{i}(unsigned long);\n")
    with open(os.path.join(folder, "main.c"), "w") as f:
        f.write('#include <stdio.h>\n#include "parts.h"\nint main(void) {\n  unsigned long a = 1;\n')
        for i in range(12):
            f.write(f"  a = part{i}(a);\n")
        f.write('  printf("%lu\\n", a);\n  return 0;\n}\n')


def workload(name, *args, **more):
    more.setdefault("timeout", 300)
    return Case(f"own-{name}", f"the guest program {name} of workloads/", ["$WORKLOADS/" + name, *args], {}, **more)


def python(name, about, quick=True, **more):
    return Case(f"python-{name}", about, ["/usr/bin/python3", f"{name}.py"], {"/usr/bin/python3": "python3"}, folder="python",
                ignore=["*.pyc", "__pycache__*"], quick=quick, **more)


GCC = {"gcc": "gcc", "as": "binutils", "/usr/include/stdio.h": "libc6-dev"}

CASES = [
    Case("bash", "pipes, subshells, here-documents, traps, background jobs, wait", ["bash", "run.sh"], {"bash": "bash"}, status=23, quick=True),
    Case("dash", "the same for the plain shell", ["dash", "run.sh"], {"dash": "dash"}, status=11, quick=True),
    Case("gcc", "gcc with cc1, as, collect2 and ld, and what they made", ["bash", "run.sh"], GCC, quick=True),
    Case("make", "make -j2 of a small project", ["bash", "run.sh"], {"make": "make", **GCC}, setup=project),
    Case("rustc", "the Rust compiler, and the program it made", ["bash", "run.sh"], {"rustc": "", **GCC}, timeout=1200),
    Case("git", "init, add, commit, branch, merge, clone, log, fsck, gc", ["bash", "run.sh"], {"git": "git"}, quick=True,
         # Two threads pack: which object is a delta of which differs.
         ignore=["*/index", "*/gc.log", "*/gc.pid", "*/objects/pack/*", "*/objects/info/*", "b.bundle"]),
    python("threads", "threads: locks, conditions, queues, a pool of them"),
    python("processes", "multiprocessing: fork and spawn, Pool, Queue, Manager, shared memory", timeout=900),
    python("children", "subprocess and os.fork: pipes, signals, time limits"),
    python("database", "sqlite3, with threads and with processes"),
    python("asynchronous", "asyncio: subprocesses, sockets, threads, signals", quick=False),
    Case("perl", "perl -T: fork, pipes, signal handlers, alarm, sockets", ["perl", "-T", "run.pl"], {"perl": "perl"}, status=8, quick=True),
    Case("node", "timers, worker threads on shared memory, WebAssembly, child processes", ["node", "run.js"], {"node": "nodejs"}, timeout=1200),
    Case("java", "threads, garbage collection, synchronized, wait and notify; from source", ["bash", "run.sh"],
         {"java": "default-jre-headless", "javac": "default-jdk-headless"}, ignore=["*.class", "hs_err*"], timeout=1800),
    Case("xz", "xz -T2 and back", ["bash", "-c", "xz -T2 --block-size=256KiB -k text && xz -T2 -dc text.xz | cmp - text && xz -l --robot text.xz"],
         {"xz": "xz-utils"}, setup=texts(1_500_000), quick=True),
    Case("zstd", "zstd -T2 and back", ["bash", "-c", "zstd -q -T2 -12 -k text && zstd -q -dc text.zst | cmp - text && zstd -q -T2 --ultra -20 -B1M -k -f text"],
         {"zstd": "zstd"}, setup=texts(3_000_000)),
    Case("pigz", "pigz -p 2 and back", ["bash", "-c", "pigz -n -p 2 -9 -k text && pigz -dc -p 2 text.gz | cmp - text && gzip -t text.gz"], {"pigz": "pigz"},
         setup=texts(3_000_000)),
    Case("openssl", "enc, dgst, keys, signatures, a certificate", ["bash", "run.sh"], {"openssl": "openssl"}, setup=texts(300_000)),
    Case("openssl-speed", "speed with two processes: that it ends well", ["bash", "-c",
         "openssl speed -seconds 1 -bytes 1024 -multi 2 sha256 && openssl speed -seconds 1 -bytes 1024 -evp aes-128-gcm"], {"openssl": "openssl"}, stdout=False, stderr=False),
    Case("tar", "tar with compressors, cp -a, diff -r, cpio's way with find", ["bash", "run.sh"],
         {"tar": "tar", "gzip": "gzip", "xz": "xz-utils"}, setup=folders, quick=True),
    Case("rsync", "rsync of a tree, twice, with changes", ["bash", "run.sh"], {"rsync": "rsync"}, setup=folders),
    Case("curl", "curl against python3 -m http.server over loopback", ["bash", "run.sh"],
         {"curl": "curl", "/usr/bin/python3": "python3"}, setup=texts(400_000), quick=True),
    Case("sqlite3", "the command line of SQLite: tables, indices, transactions, two at once", ["bash", "run.sh"], {"sqlite3": "sqlite3"}),
    Case("text", "awk, sed, sort, find, xargs -P, join, split, tee", ["bash", "run.sh"], {"awk": "mawk", "find": "findutils"},
         setup=texts(300_000), quick=True),
    Case("pty", "a shell with job control on a pseudo-terminal (script)", ["bash", "run.sh"], {"script": "bsdutils"}, ignore=["typescript"]),
    Case("parallel", "GNU parallel", ["bash", "run.sh"], {"parallel": "parallel"}, stderr=False, ignore=[".parallel*"]),
    Case("tsan", "a race-free program under ThreadSanitizer", ["bash", "run.sh"],
         {"/usr/lib/gcc/x86_64-linux-gnu/12/libtsan.so": "libgcc-12-dev", **GCC}, timeout=300),
    workload("smc", "--count", "100000", quick=True),
    workload("procs", "--count", "500", quick=True),
    workload("signals", quick=True),
    workload("stress", "--seconds", "4", quick=True),
]
