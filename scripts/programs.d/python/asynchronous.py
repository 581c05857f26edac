"""asyncio: tasks, subprocesses, sockets, threads, signals."""
import asyncio
import os
import signal
import ssl
import sys
import time


async def child(n):
    p = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"import sys; d = sys.stdin.read(); print(len(d) * {n}); sys.exit({n})",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    out, _ = await p.communicate(b"x" * 1000)
    return int(out), p.returncode


async def serve(reader, writer):
    while line := await reader.readline():
        writer.write(line[::-1].strip() + b"\n")
        await writer.drain()
    writer.close()


async def client(port, n):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    out = []
    for i in range(20):
        writer.write(f"{n}-{i}\n".encode())
        out.append((await reader.readline()).strip().decode())
    writer.close()
    await writer.wait_closed()
    return out[-1]


async def main():
    print(await asyncio.gather(*(child(n) for n in range(1, 4))))
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(await asyncio.gather(*(client(port, n) for n in range(10))))
    server.close()
    await server.wait_closed()
    unix = await asyncio.start_unix_server(serve, "socket")
    reader, writer = await asyncio.open_unix_connection("socket")
    writer.write(b"over unix\n")
    print(await reader.readline())
    writer.close()
    unix.close()
    await unix.wait_closed()
    os.path.exists("socket") and os.remove("socket")
    loop = asyncio.get_running_loop()
    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, got.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(got.wait(), 30)
    print("signal")
    print(await asyncio.gather(*(asyncio.to_thread(lambda i=i: (time.sleep(0.01), i)[1]) for i in range(5))))
    try:
        await asyncio.wait_for(asyncio.sleep(30), 0.05)
    except asyncio.TimeoutError:
        print("timeout")
    p = await asyncio.create_subprocess_shell("sleep 60")
    p.terminate()
    print("terminated", await p.wait())
    queue, out = asyncio.Queue(3), []

    async def worker():
        while True:
            out.append(await queue.get() ** 2)
            queue.task_done()

    workers = [asyncio.create_task(worker()) for _ in range(3)]
    for i in range(50):
        await queue.put(i)
    await queue.join()
    [w.cancel() for w in workers]
    print("queue", sum(out), ssl.create_default_context() is not None)


asyncio.run(main())
