"""multiprocessing: fork, spawn and forkserver; pools, queues, managers, shared memory."""
import array
import multiprocessing as mp
import os
import signal
import sys
import time
from multiprocessing import shared_memory


def square(x):
    return x * x


def fails(x):
    raise ValueError(f"bad {x}")


def producer(q, n):
    for i in range(n):
        q.put(("item", i))
    q.put(None)


def count(value, array, lock, n):
    for i in range(n):
        with value.get_lock():
            value.value += 1
        with lock:
            array[i % len(array)] += 1


def talk(end):
    while (x := end.recv()) != "stop":
        end.send((x, len(x)))
    end.close()


def in_shared(name, size):
    block = shared_memory.SharedMemory(name)
    block.buf[:size] = bytes((b + 1) % 256 for b in block.buf[:size])
    block.close()


def ends(how):
    if how == "exit":
        sys.exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        sys.stderr = open(os.devnull, "w")
        raise RuntimeError
    time.sleep(100)


def meets(barrier, event, q):
    barrier.wait(60)
    event.wait(60)
    q.put(1)


def all_of(method):
    c = mp.get_context(method)
    print("==", method, flush=True)
    with c.Pool(3) as pool:
        print("map", sum(pool.map(square, range(200), chunksize=7)))
        print("imap", sorted(pool.imap_unordered(square, range(20)))[-3:])
        try:
            pool.apply(fails, (3,))
        except ValueError as e:
            print("error", e)
        print("async", pool.starmap_async(pow, [(2, i) for i in range(10)]).get(60))
    q = c.Queue()
    p = c.Process(target=producer, args=(q, 100))
    p.start()
    print("queue", sum(x[1] for x in iter(q.get, None)))
    p.join()
    value, shared, lock = c.Value("q", 0), c.Array("i", 10), c.Lock()
    ps = [c.Process(target=count, args=(value, shared, lock, 200)) for _ in range(3)]
    [p.start() for p in ps]
    [p.join() for p in ps]
    print("value", value.value, list(shared), [p.exitcode for p in ps])
    a, b = c.Pipe()
    p = c.Process(target=talk, args=(b,))
    p.start()
    for x in ("a", "b" * 100_000):
        a.send(x)
        print("pipe", a.recv()[1])
    a.send("stop")
    p.join()
    block = shared_memory.SharedMemory(create=True, size=10_000)
    block.buf[:10_000] = bytes(i % 256 for i in range(10_000))
    ps = [c.Process(target=in_shared, args=(block.name, 10_000))]
    [p.start() for p in ps]
    [p.join() for p in ps]
    print("shared memory", sum(block.buf[:10_000]), [p.exitcode for p in ps])
    block.close()
    block.unlink()
    statuses = []
    for how in ("exit", "kill", "raise", "sleep"):
        p = c.Process(target=ends, args=(how,))
        p.start()
        if how == "sleep":
            p.terminate()
        p.join(60)
        statuses.append(p.exitcode)
    print("ends", statuses)
    barrier, event, q = c.Barrier(3), c.Event(), c.SimpleQueue()
    ps = [c.Process(target=meets, args=(barrier, event, q)) for _ in range(2)]
    [p.start() for p in ps]
    barrier.wait(60)
    event.set()
    print("barrier", q.get() + q.get())
    [p.join() for p in ps]


if __name__ == "__main__":
    all_of("fork")
    all_of("spawn")
    all_of("forkserver")
    with mp.Manager() as m:
        d, l = m.dict(), m.list([3, 1, 2])
        d["x"] = 5
        l.sort()
        print("manager", dict(d), list(l))
    print("children left", mp.active_children())
