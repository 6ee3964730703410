// A web server with timers, threads and compiled code, in a pod that moves between kernels. GET /small says that it is
// still here; GET /counts says how often each of its clocks has fired, and what went wrong.
"use strict";
const fs = require("fs/promises");
const http = require("http");
const { Worker } = require("worker_threads");

const clocks = { interval: 0, timeout: 0, pool: 0, worker: 0 };
const faults = [];
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const forever = (work) => (async () => { for (;;) await work(); })().catch((e) => faults.push(String(e)));

// Hot enough to be compiled for the processor that it was born on.
function sum() {
    let x = 1;
    for (let i = 0; i < 200000; i++) x = (Math.imul(x, 1103515245) + 12345 + i) | 0;
    return x;
}
const right = sum();

setInterval(() => {
    clocks.interval++;
    if (sum() !== right) faults.push("a sum came out otherwise");
}, 100);

forever(async () => {
    const begun = process.hrtime.bigint();
    await pause(200);
    const ms = Number(process.hrtime.bigint() - begun) / 1e6;
    if (ms < 190) faults.push(`a pause of 200 ms took ${ms} ms`);
    clocks.timeout++;
});

// Files are read in a pool of threads.
forever(async () => {
    if (!(await fs.readFile("/etc/passwd", "utf8")).startsWith("root:")) faults.push("a file reads otherwise");
    clocks.pool++;
    await pause(50);
});

// A thread that waits on memory shared with this one; both count the rounds.
const shared = new Int32Array(new SharedArrayBuffer(4));
const worker = new Worker(
    `const shared = new Int32Array(require("worker_threads").workerData);
     for (;;) { Atomics.wait(shared, 0, 0); Atomics.store(shared, 0, 0); Atomics.notify(shared, 0); }`,
    { eval: true, workerData: shared.buffer },
);
worker.on("error", (e) => faults.push(String(e)));
forever(async () => {
    if (Atomics.load(shared, 0) === 0) {
        clocks.worker++;
        Atomics.store(shared, 0, 1);
        Atomics.notify(shared, 0);
    }
    await pause(50);
});

const server = http.createServer((request, response) => {
    const body = request.url === "/counts" ? JSON.stringify({ clocks, faults }) : "still here";
    response.setHeader("Content-Length", body.length + 1);
    response.end(body + "\n");
});
// Emulated, a move from a kernel that does not tell what is written lasts longer than node keeps a silent connection: 5 s.
server.keepAliveTimeout = 60000;
server.listen(80, "0.0.0.0");
