'use strict';
const { Worker, isMainThread, workerData, parentPort } = require('worker_threads');
const { spawnSync, spawn, fork, execFileSync } = require('child_process');
const { createHash, pbkdf2 } = require('crypto');
const zlib = require('zlib');
const net = require('net');
const fs = require('fs');
const { promisify } = require('util');
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));

if (!isMainThread) {
    const shared = new Int32Array(workerData.buffer);
    for (let i = 0; i < workerData.n; i++) Atomics.add(shared, 0, 1);
    for (let i = 0; i < 100; i++) {
        while (Atomics.compareExchange(shared, 1, 0, 1) !== 0) Atomics.wait(shared, 1, 1, 1000);
        shared[2]++;
        Atomics.store(shared, 1, 0);
        Atomics.notify(shared, 1, 1);
    }
    parentPort.postMessage({ done: workerData.id });
    return;
}
if (process.argv[2] === 'child') {
    process.on('message', (m) => { process.send({ twice: m.x * 2 }); if (m.end) process.exit(4); });
    return;
}

// (module (func $fib (export "fib") (param i32) (result i32)
//   local.get 0 i32.const 2 i32.lt_s if (result i32) local.get 0 else
//   local.get 0 i32.const 1 i32.sub call 0 local.get 0 i32.const 2 i32.sub call 0 i32.add end))
const wasm = new Uint8Array([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 102, 105, 98, 0, 0,
    10, 30, 1, 28, 0, 32, 0, 65, 2, 72, 4, 127, 32, 0, 5, 32, 0, 65, 1, 107, 16, 0, 32, 0, 65, 2, 107, 16, 0, 106, 11, 11]);

async function main() {
    const order = [];
    setTimeout(() => order.push('timeout 3000'), 3000);
    setTimeout(() => order.push('timeout 1500'), 1500);
    setImmediate(() => order.push('immediate'));
    process.nextTick(() => order.push('tick'));
    Promise.resolve().then(() => order.push('promise'));
    await sleep(4500);
    console.log(order.join(', '));

    const buffer = new SharedArrayBuffer(64);
    const ids = await Promise.all([0, 1, 2].map((id) => new Promise((resolve, reject) => {
        const w = new Worker(__filename, { workerData: { buffer, id, n: 20000 } });
        w.once('message', (m) => resolve(m.done));
        w.once('error', reject);
    })));
    const shared = new Int32Array(buffer);
    console.log('workers', ids.join(), shared[0], shared[2]);

    fs.mkdirSync('out');
    await new Promise((r) => setTimeout(r, 1));
    const module = await WebAssembly.instantiate(wasm);
    console.log('wasm', module.instance.exports.fib(24));

    // Hot enough for every tier of the engine, with a type that changes late.
    const hot = (n, one) => { let s = 0; for (let i = 0; i < n; i++) s = (s * 31 + i * one) % 1000003; return s; };
    for (let i = 0; i < 200; i++) hot(1000, 1);
    console.log('hot', hot(300000, 1), hot(1000, 0.5), hot(1000, 1));

    const p = spawnSync('sh', ['-c', 'cat; echo err >&2; exit 3'], { input: 'to the child\n' });
    console.log(p.status, String(p.stdout).trim(), String(p.stderr).trim());
    console.log(execFileSync('seq', ['1', '3']).toString().split('\n').join(' '));
    const s = spawn('sleep', ['60']);
    setTimeout(() => s.kill(), 20);
    console.log('killed', await new Promise((r) => s.on('exit', (code, signal) => r(signal))));
    const f = fork(__filename, ['child']);
    const answers = [];
    f.on('message', (m) => answers.push(m.twice));
    f.send({ x: 21 });
    f.send({ x: 4, end: true });
    console.log('forked', await new Promise((r) => f.on('exit', r)), answers.join());

    const hash = await promisify(pbkdf2)('password', 'salt', 2000, 32, 'sha256');
    const data = Buffer.alloc(500000, 'some text to compress, ');
    const z = await promisify(zlib.gzip)(data);
    console.log(hash.toString('hex').slice(0, 16), createHash('sha1').update(await promisify(zlib.gunzip)(z)).digest('hex'));
    const files = await Promise.all([...Array(20).keys()].map(async (i) => {
        await fs.promises.writeFile(`out/${i}`, 'x'.repeat(i * 100));
        return (await fs.promises.readFile(`out/${i}`)).length;
    }));
    console.log('files', files.reduce((a, b) => a + b));
    const server = net.createServer((c) => c.pipe(c));
    await new Promise((r) => server.listen(0, '127.0.0.1', r));
    const echoed = await new Promise((resolve) => {
        const c = net.connect(server.address().port, '127.0.0.1', () => c.end('through a socket'));
        let all = '';
        c.on('data', (d) => { all += d; });
        c.on('end', () => resolve(all));
    });
    server.close();
    console.log(echoed);
    process.once('SIGUSR2', () => { console.log('signal'); process.exitCode = 0; });
    process.kill(process.pid, 'SIGUSR2');
    await sleep(50);
    const garbage = [];
    for (let i = 0; i < 300000; i++) { garbage[i % 1000] = { i, s: 'x' + i }; }
    console.log('garbage', garbage.reduce((a, g) => a + g.i, 0));
}
main().catch((e) => { console.error(e); process.exit(1); });
