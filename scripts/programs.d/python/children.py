"""subprocess and os.fork: pipes, signals, time limits, descriptors."""
import errno
import os
import select
import signal
import subprocess as sp
import sys
import time

run = lambda *a, **k: sp.run(a, capture_output=True, text=True, **k)
p = run("sh", "-c", "echo out; echo err >&2; exit 5")
print(p.returncode, repr(p.stdout), repr(p.stderr))
print(run("tr", "a-z", "A-Z", input="through tr\n").stdout, end="")
print(run("sh", "-c", "kill -9 $$").returncode)
try:
    run("sleep", "30", timeout=0.2)
except sp.TimeoutExpired as e:
    print("timeout", e.timeout)
try:
    run("/does/not/exist")
except FileNotFoundError as e:
    print("errno", e.errno)
print(run("sh", "-c", "echo $A; pwd", env={"A": "b"}, cwd="/usr").stdout.split())
a = sp.Popen(["seq", "1", "5000"], stdout=sp.PIPE)
b = sp.Popen(["grep", "-c", "7"], stdin=a.stdout, stdout=sp.PIPE, text=True)
a.stdout.close()
print("pipeline", b.communicate()[0].strip(), a.wait())
big = sp.run(["cat"], input=bytes(range(256)) * 4000, capture_output=True)
print("large", len(big.stdout), big.stdout == bytes(range(256)) * 4000)
print(run(sys.executable, "-c", "import os; print(os.getpgid(0) == os.getpid())", start_new_session=True).stdout.strip())
r, w = os.pipe()
q = sp.Popen(["sh", "-c", f"echo inherited >&{w}"], pass_fds=[w])
q.wait()
os.close(w)
print(os.read(r, 100))
print([sp.call(["sh", "-c", f"exit {i}"]) for i in range(5)])
print(sp.getoutput("echo a; echo b >&2"), os.system("exit 3") >> 8, sp.check_output("echo bytes", shell=True))

pids = {}
for i in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(i * 10)
    pids[pid] = i
got = {}
while pids:
    pid, status = os.wait()
    got[pids.pop(pid)] = os.waitstatus_to_exitcode(status)
print("fork", dict(sorted(got.items())))
try:
    os.wait()
except ChildProcessError as e:
    print("no child", e.errno == errno.ECHILD)

seen = []
signal.signal(signal.SIGCHLD, lambda s, f: seen.append(s))
signal.signal(signal.SIGALRM, lambda s, f: seen.append(s))
sp.Popen(["true"]).wait()
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(0.3)
print("signals", sorted(set(int(s) for s in seen)))
signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def late(s, f):
    raise TimeoutError("alarm")


signal.signal(signal.SIGALRM, late)
signal.alarm(1)
try:
    sp.run(["sleep", "20"])
except TimeoutError as e:
    print("interrupted by", e)
c = sp.Popen(["sh", "-c", "echo ready; read x; echo got $x"], stdin=sp.PIPE, stdout=sp.PIPE)
ready = select.select([c.stdout], [], [], 20)[0]
print("select", len(ready), c.stdout.readline())
c.stdin.write(b"this\n")
c.stdin.close()
print(c.stdout.read(), c.wait())
pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 4"], {}, setpgroup=0)
print("spawned", os.waitpid(pid, 0)[1] >> 8)
master, slave = os.openpty()
t = sp.Popen(["sh", "-c", "test -t 0 && echo terminal"], stdin=slave, stdout=slave)
t.wait()
print(os.read(master, 100))
os.execv(sys.executable, [sys.executable, "-c", "import sys; print('after exec', sys.argv); sys.exit(9)", "x"]) if os.fork() == 0 else None
print("exec", os.wait()[1] >> 8)
