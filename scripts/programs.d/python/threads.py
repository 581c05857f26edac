"""Threads: everything the threading module has, with results that don't depend on their order."""
import concurrent.futures
import contextvars
import hashlib
import queue
import threading
import time

lock, total = threading.Lock(), 0


def add(n):
    global total
    for _ in range(n):
        with lock:
            total += 1


ts = [threading.Thread(target=add, args=(2000,)) for _ in range(8)]
[t.start() for t in ts]
[t.join() for t in ts]
print("lock", total)

items, done = queue.Queue(maxsize=5), queue.SimpleQueue()


def worker():
    while (x := items.get()) is not None:
        done.put(x * x)
        items.task_done()
    items.task_done()


ts = [threading.Thread(target=worker, daemon=True) for _ in range(4)]
[t.start() for t in ts]
for i in range(500):
    items.put(i)
for _ in ts:
    items.put(None)
items.join()
print("queue", sum(done.get() for _ in range(500)))

condition, turn, order = threading.Condition(), 0, []


def in_turn(me):
    global turn
    for _ in range(50):
        with condition:
            condition.wait_for(lambda: turn % 3 == me)
            order.append(me)
            turn += 1
            condition.notify_all()


ts = [threading.Thread(target=in_turn, args=(i,)) for i in range(3)]
[t.start() for t in ts]
[t.join() for t in ts]
print("condition", order == [0, 1, 2] * 50)

barrier, semaphore, event = threading.Barrier(4), threading.BoundedSemaphore(2), threading.Event()
inside, worst, passed = 0, 0, []


def meet():
    global inside, worst
    passed.append(barrier.wait())
    for _ in range(20):
        with semaphore:
            with lock:
                inside += 1
                worst = max(worst, inside)
            time.sleep(0.0002)
            with lock:
                inside -= 1
    event.wait(30)


ts = [threading.Thread(target=meet) for _ in range(4)]
[t.start() for t in ts]
time.sleep(0.05)
event.set()
[t.join() for t in ts]
print("barrier", sorted(passed), "semaphore", worst <= 2, "event", event.is_set())

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    data = [bytes([i]) * 300_000 for i in range(16)]
    print("pool", hashlib.sha256(b"".join(pool.map(lambda d: hashlib.sha256(d).digest(), data))).hexdigest())
    futures = [pool.submit(lambda i=i: 1 // (i - 3)) for i in range(6)]
    print("errors", [type(f.exception()).__name__ for f in futures])

local = threading.local()
local.x = "main"
seen = []
timer = threading.Timer(0.02, lambda: seen.append(getattr(local, "x", "none")))
timer.start()
timer.join()
cancelled = threading.Timer(60, seen.append, ("never",))
cancelled.start()
cancelled.cancel()
cancelled.join()
print("local", seen, contextvars.copy_context().run(lambda: 3))
print("timeout", lock.acquire(), lock.acquire(timeout=0.01), condition.acquire(blocking=False), threading.active_count())
