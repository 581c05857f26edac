"""The running half of scripts/programs: each case natively and under sevlab, in fresh folders, and what differs."""
import argparse
import concurrent.futures
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(HERE, "programs.d"))
sys.dont_write_bytecode = True
from cases import CASES  # noqa: E402

# What programs see, and nothing else: a run must not depend on who starts it.
PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"
PRINT = threading.Lock()


def environment(folder):
    env = {
        # Its folder would be one more that the program has made; the tests of the cache are elsewhere.
        "SEVLAB_CODE_CACHE": "off",
        "PATH": PATH,
        "HOME": folder,
        "TMPDIR": os.path.join(folder, "tmp"),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "dumb",
        "USER": "guest",
        "LOGNAME": "guest",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": "1600000000",
        "WORKLOADS": os.path.join(ROOT, "target", "release"),
    }
    rustc = real_rustc()
    if rustc:
        env["RUSTC"] = rustc
    return env


_RUSTC = []


def real_rustc():
    """The compiler itself: what is in PATH may be a front that starts it."""
    if not _RUSTC:
        found = None
        if shutil.which("rustc"):
            p = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=False)
            path = os.path.join(p.stdout.strip(), "bin", "rustc")
            found = path if p.returncode == 0 and os.path.exists(path) else None
        _RUSTC.append(found)
    return _RUSTC[0]


def missing(case):
    """What of its needs is not there, as (command, package)."""
    out = []
    for command, package in case.needs.items():
        if command == "rustc":
            there = real_rustc()
        elif "/" in command:
            there = os.path.exists(command)
        else:
            there = shutil.which(command, path=PATH)
        if not there:
            out.append((command, package))
    return out


def install(cases):
    """Installs the packages of what is missing, all in one; failing that, one by one."""
    packages = sorted({p for c in cases for _, p in missing(c) if p})
    if not packages:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(f"programs: not root, or no apt-get: not installing {' '.join(packages)}", file=sys.stderr)
        return
    print(f"programs: apt-get install {' '.join(packages)}", file=sys.stderr)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")

    def apt(*args):
        p = subprocess.run(["apt-get", "-qq", *args], env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return p.returncode == 0

    apt("update")
    get = ["install", "-y", "--no-install-recommends"]
    if not apt(*get, *packages):
        for package in packages:
            if not apt(*get, package):
                print(f"programs: apt-get can't install {package}", file=sys.stderr)


def tree(folder, ignore):
    """What is in a folder: {name: description with a digest}."""
    out = {}
    for base, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(base, name)
            short = os.path.relpath(path, folder)
            if any(fnmatch.fnmatch(short, pattern) for pattern in ignore):
                continue
            st = os.lstat(path)
            what = f"mode {stat.S_IMODE(st.st_mode):o}"
            if stat.S_ISLNK(st.st_mode):
                what = f"link to {os.readlink(path)}"
            elif stat.S_ISREG(st.st_mode):
                with open(path, "rb") as f:
                    data = f.read()
                what += f" {len(data)} bytes sha256 {hashlib.sha256(data).hexdigest()[:16]}"
            elif stat.S_ISDIR(st.st_mode):
                what += " folder"
            else:
                what += f" kind {stat.S_IFMT(st.st_mode):o}"
            out[short] = what
    return out


class Run:
    """One run of a case."""

    def __init__(self, case, mode, prefix, base, timeout):
        self.case, self.mode = case, mode
        # The same path in every run, since programs print it; afterwards it gets the mode's name.
        work = os.path.join(base, "w")
        shutil.rmtree(work, ignore_errors=True)
        source = os.path.join(HERE, "programs.d", case.folder)
        if os.path.isdir(source):
            shutil.copytree(source, work)
        else:
            os.makedirs(work)
        os.makedirs(os.path.join(work, "tmp"))
        if case.setup:
            case.setup(work)
        for base_name, folders, files in os.walk(work):
            for name in folders + files:
                os.utime(os.path.join(base_name, name), (1_600_000_000, 1_600_000_000), follow_symlinks=False)
        env = environment(work)
        argv = [os.path.expandvars(a) if "$" not in a else substitute(a, env) for a in case.run]
        argv[0] = shutil.which(argv[0], path=PATH) or argv[0]
        start = time.monotonic()
        self.stdout, self.stderr, self.status, self.timed_out = started(prefix + argv, work, env, timeout)
        self.seconds = time.monotonic() - start
        self.tree = tree(work, ["tmp/*", *case.ignore])
        self.folder = os.path.join(base, mode)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        os.rename(work, os.path.join(self.folder, "files"))
        for name in ("stdout", "stderr"):
            with open(os.path.join(self.folder, name), "wb") as f:
                f.write(getattr(self, name))

    def difference(self, native):
        """The first thing that is not as natively, or None."""
        tail = self.stderr[-1500:].decode(errors="replace").strip()
        if self.timed_out:
            return f"no end within {self.seconds:.0f} s; stderr ends: {tail[-600:]}"
        if self.status != native.status:
            return f"status {self.status} instead of {native.status}; stderr ends: {tail}"
        if self.case.stdout:
            text = bytes_differ("stdout", native.stdout, self.stdout)
            if text:
                return text + (f"; stderr ends: {tail[-400:]}" if tail else "")
        if self.case.stderr:
            text = bytes_differ("stderr", native.stderr, self.stderr)
            if text:
                return text
        if self.case.files:
            for name in sorted(set(native.tree) | set(self.tree)):
                a, b = native.tree.get(name, "not there"), self.tree.get(name, "not there")
                if a != b:
                    return f"{name}: {b} instead of {a}"
        return None


def substitute(text, env):
    for key, value in env.items():
        text = text.replace("$" + key, value)
    return text


def bytes_differ(what, expected, got):
    if expected == got:
        return None
    at = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))
    line = expected[:at].count(b"\n")
    a = expected.split(b"\n")[line][:200]
    lines = got.split(b"\n")
    b = lines[line][:200] if line < len(lines) else b""
    return f"{what} differs in line {line + 1}: {b.decode(errors='replace')!r} instead of {a.decode(errors='replace')!r}"


def started(argv, folder, env, timeout):
    """Standard output and error, status (minus the signal), and whether it had to be ended."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # In the background of a shell, or under nohup, these are ignored, and would be by every program: some wait for them.
        argv = ["env", "--default-signal=HUP,INT,QUIT", *argv]
        # Files, not pipes: a daemon that is left over must not keep this waiting.
        p = subprocess.Popen(
            argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        timed_out = False
        try:
            p.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        # Whoever of its group is left, too.
        try:
            os.killpg(p.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        p.wait()
        out.seek(0)
        err.seek(0)
        return out.read(), err.read(), p.returncode, timed_out


def one(case, args, base, log):
    """All runs of a case; the rows of the table."""
    folder = os.path.join(base, case.name)
    os.makedirs(folder, exist_ok=True)
    rows = []
    try:
        native = Run(case, "native", [], folder, args.timeout or case.timeout)
    except OSError as e:
        return [(case.name, "native", None, None, f"does not start: {e}", True)]
    bad = native.timed_out or (case.status is not None and native.status != case.status)
    log(case, native, None if not bad else "fails natively")
    if bad:
        why = "no end" if native.timed_out else f"status {native.status}"
        text = native.stderr[-300:].decode(errors="replace").strip()
        return [(case.name, "native", native.seconds, None, f"fails natively: {why}: {text}", True)]
    if not args.sev and not args.twice:
        rows.append((case.name, "native", native.seconds, None, "ends as it should", False))
    if args.twice:
        again = Run(case, "again", [], folder, args.timeout or case.timeout)
        difference = again.difference(native)
        log(case, again, difference)
        rows.append((case.name, "native again", native.seconds, again.seconds, difference or "same", bool(difference)))
    for mode in args.sev:
        prefix = [args.sevlab, "run", "--sev", mode, *args.option, "--"]
        for n in range(1, args.repeat + 1):
            run = Run(case, mode, prefix, folder, args.timeout or case.timeout)
            difference = run.difference(native)
            log(case, run, difference)
            if difference:
                break
        text = difference or "same"
        if args.repeat > 1:
            text = f"run {n} of {args.repeat}: {difference}" if difference else f"same, {n} times"
        rows.append((case.name, mode, native.seconds, run.seconds, text, bool(difference)))
    return rows


def show(rows, markdown):
    def cell(x):
        return "" if x is None else f"{x:.2f}"

    if markdown:
        print("| program | mode | native s | sevlab s | result |")
        print("|---|---|---|---|---|")
        for name, mode, native, seconds, text, _ in rows:
            short = " ".join(text.split()).replace("|", "\\|")
            print(f"| {name} | {mode} | {cell(native)} | {cell(seconds)} | {short[:160]} |")
        return
    print(f"{'program':<18} {'mode':<12} {'native s':>9} {'sevlab s':>9}  result")
    for name, mode, native, seconds, text, _ in rows:
        first = text.splitlines()[0] if text else ""
        print(f"{name:<18} {mode:<12} {cell(native):>9} {cell(seconds):>9}  {first[:200]}")


def main():
    ap = argparse.ArgumentParser(prog="programs")
    ap.add_argument("--sev", default="off,snp", help="modes, with commas between; none: natively only")
    ap.add_argument("--quick", action="store_true")
    ap.add_argument("--only", action="append", default=[])
    ap.add_argument("--jobs", type=int, default=1)
    ap.add_argument("--keep", metavar="DIR")
    ap.add_argument("--list", action="store_true")
    ap.add_argument("--markdown", action="store_true")
    ap.add_argument("--no-install", action="store_true")
    ap.add_argument("--timeout", type=float, help="seconds, instead of each program's own")
    ap.add_argument("--sevlab", default=os.path.join(ROOT, "target", "release", "sevlab"))
    ap.add_argument("--option", action="append", default=[], help="one more option of sevlab run")
    ap.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each program in each mode")
    ap.add_argument("--twice", action="store_true", help="natively twice: is it the same at all?")
    args = ap.parse_args()
    if args.list:
        for case in CASES:
            print(f"{case.name:<18} {'quick' if case.quick else '':<6} {case.about}")
        return 0
    if args.repeat < 1:
        ap.error(f"--repeat {args.repeat}: at least 1")
    args.sev = [m for m in args.sev.split(",") if m and m != "none"]
    unknown = [m for m in args.sev if m not in ("off", "sev", "es", "snp")]
    if unknown:
        ap.error(f"--sev {','.join(unknown)}: no such mode")
    names = [n for o in args.only for n in o.split(",")]
    unknown = [n for n in names if n not in {c.name for c in CASES}]
    if unknown:
        ap.error(f"--only {','.join(unknown)}: no such program (--list names them)")
    cases = [c for c in CASES if (c.name in names if names else c.quick or not args.quick)]
    if not args.no_install:
        install(cases)
    args.sevlab = os.path.abspath(args.sevlab)
    if args.sev and not os.path.exists(args.sevlab):
        sys.exit(f"programs: {args.sevlab} is not there (cargo build --release)")
    base = os.path.abspath(args.keep) if args.keep else tempfile.mkdtemp(prefix="programs-")
    os.makedirs(base, exist_ok=True)
    lines = open(os.path.join(base, "results.jsonl"), "a")

    def log(case, run, difference):
        line = {
            "program": case.name, "mode": run.mode, "seconds": round(run.seconds, 3), "status": run.status,
            "timed_out": run.timed_out, "difference": difference, "folder": run.folder,
        }
        with PRINT:
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            word = "" if run.mode == "native" and not difference else "same" if not difference else difference.splitlines()[0][:160]
            print(f"{case.name:<18} {run.mode:<8} {run.seconds:8.2f} s  {word}", file=sys.stderr, flush=True)

    rows, skipped = [], []
    try:
        runnable = []
        for case in cases:
            gone = missing(case)
            if gone:
                skipped.append(f"{case.name}: {', '.join(c for c, _ in gone)} is not installed and could not be had")
            else:
                runnable.append(case)
        with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
            for result in pool.map(lambda c: one(c, args, base, log), runnable):
                rows.extend(result)
    finally:
        lines.close()
        if not args.keep:
            shutil.rmtree(base, ignore_errors=True)
    show(rows, args.markdown)
    for line in skipped:
        print(f"skipped: {line}")
    bad = [r for r in rows if r[5]]
    for name, mode, _, _, text, _ in bad:
        print(f"\n{name} ({mode}): {text}")
    print(f"\n{len(rows) - len(bad)} of {len(rows)} runs as they should be, {len(skipped)} programs left out")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
