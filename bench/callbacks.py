"""How many callbacks a second are accepted durably, and how long the answer takes, beside bare SQLite commits on the same disk.

    target/venv/bin/python bench/callbacks.py [RATE [SECONDS]]
    target/venv/bin/python bench/callbacks.py pending [COUNT]

Needs the release build, or WECOM_PROXY with another one, and pycryptodome (tests/requirements.txt). A target accepts
everything at once; with "pending" it is away, and the memory is measured that waiting messages cost.
"""

import asyncio
import base64
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time

from Crypto.Cipher import AES

TOKEN, AES_KEY, CORPID = "token-of-callbacks", "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C", "ww1234567890abcdef"
KEY = base64.b64decode(AES_KEY + "=")
CONNECTIONS = 64
CONFIG = """
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://127.0.0.1:9"
[log]
access = false
[state]
path = "state.db"
key = "key-of-the-state-0123456789-0123456789"
[agents.hr]
corpid = "{corpid}"
secret = "not-a-secret-hr-0000000000000000000000000000"
[callbacks.hr]
agent = "hr"
token = "{token}"
aes_key = "{aes_key}"
[[callbacks.hr.to]]
name = "crm"
url = "http://127.0.0.1:{port}/"
"""


def push(number):
    message = f"<xml><ToUserName><![CDATA[{CORPID}]]></ToUserName><FromUserName><![CDATA[sys]]></FromUserName><CreateTime>{number}</CreateTime><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[change_contact]]></Event><ChangeType><![CDATA[update_user]]></ChangeType><UserID><![CDATA[zhangsan]]></UserID><Name><![CDATA[{'x' * 400}]]></Name></xml>".encode()
    text = os.urandom(16) + len(message).to_bytes(4, "big") + message + CORPID.encode()
    pad = 32 - len(text) % 32
    encrypted = base64.b64encode(AES.new(KEY, AES.MODE_CBC, KEY[:16]).encrypt(text + bytes([pad]) * pad)).decode()
    timestamp, nonce = str(int(time.time())), str(number)
    signature = hashlib.sha1("".join(sorted([TOKEN, timestamp, nonce, encrypted])).encode()).hexdigest()
    body = f"<xml><ToUserName><![CDATA[{CORPID}]]></ToUserName><Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>".encode()
    head = f"POST /callbacks/hr?msg_signature={signature}&timestamp={timestamp}&nonce={nonce} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_message(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    await reader.readexactly(length)
    return head


async def target(reader, writer):
    global delivered
    try:
        while True:
            await read_message(reader)
            delivered += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        writer.close()


delivered = 0


async def connection(port, queue, latencies):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (item := await queue.get()) is not None:
        due, request = item
        writer.write(request)
        head = await read_message(reader)
        assert head.startswith(b"HTTP/1.1 200"), head
        # From the time at which it was due: a queue in this program counts too.
        latencies.append(time.perf_counter() - due)
    writer.close()


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        user, system = stat.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def measure_pending(port, pid, count):
    print(f"no message waits: {resident_kib(pid)} KiB")
    queue, latencies = asyncio.Queue(2 * CONNECTIONS), []
    connections = [asyncio.create_task(connection(port, queue, latencies)) for _ in range(CONNECTIONS)]
    for number in range(1, count + 1):
        await queue.put((time.perf_counter(), push(random.getrandbits(48))))
        if number % (count // 4) == 0:
            print(f"{number} messages wait: {resident_kib(pid)} KiB", flush=True)
    for _ in connections:
        await queue.put(None)
    await asyncio.gather(*connections)


async def measure(port, pid, rate, seconds):
    pushes = [push(random.getrandbits(48)) for _ in range(int(rate * seconds))]
    queue, latencies = asyncio.Queue(), []
    connections = [asyncio.create_task(connection(port, queue, latencies)) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for nth, request in enumerate(pushes):
        due = began + nth / rate
        if (wait := due - time.perf_counter()) > 0.001:
            await asyncio.sleep(wait)
        queue.put_nowait((due, request))
    for _ in connections:
        queue.put_nowait(None)
    await asyncio.gather(*connections)
    took = time.perf_counter() - began
    latencies.sort()
    at = lambda share: latencies[min(len(latencies) - 1, int(len(latencies) * share))] * 1000
    print(f"accepted {len(latencies) / took:.0f}/s of {rate:.0f}/s; answer p50 {at(0.5):.1f} ms, p99 {at(0.99):.1f} ms, max {at(1):.1f} ms")
    until = time.perf_counter() + 60
    while delivered < len(pushes) and time.perf_counter() < until:
        await asyncio.sleep(0.05)
    print(f"delivered {delivered} of {len(pushes)} within {time.perf_counter() - began:.1f} s of the first")
    print(f"CPU time of the proxy: {cpu_seconds(pid) / len(pushes) * 1e6:.0f} µs a message, accepted and delivered")


def bare_commits(directory):
    database = sqlite3.connect(os.path.join(directory, "bare.db"), isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 5:
        database.execute("INSERT INTO t (b) VALUES (?)", (b"x" * 900,))
        count += 1
    print(f"bare SQLite commits, one after the other: {count / 5:.0f}/s")


async def main():
    is_pending = sys.argv[1:2] == ["pending"]
    numbers = [float(argument) for argument in sys.argv[1 + is_pending :]]
    rate, seconds = (*numbers, *(2000.0, 10.0)[len(numbers) :]) if not is_pending else (0.0, 0.0)
    with tempfile.TemporaryDirectory(dir="target") as directory:
        bare_commits(directory)
        server = await asyncio.start_server(target, "127.0.0.1", 0)
        config = CONFIG.format(corpid=CORPID, token=TOKEN, aes_key=AES_KEY, port=server.sockets[0].getsockname()[1])
        if is_pending:
            server.close()
        path = os.path.join(directory, "proxy.toml")
        with open(path, "w") as file:
            file.write(config)
        program = os.environ.get("WECOM_PROXY", "target/release/wecom-proxy")
        proxy = subprocess.Popen([program, "--config", path], stderr=subprocess.PIPE, text=True)
        try:
            line = next(line for line in proxy.stderr if "ready listen=" in line)
            port = int(line.split("listen=")[1].split()[0].strip('"').rsplit(":", 1)[1])
            if is_pending:
                await measure_pending(port, proxy.pid, int(numbers[0]) if numbers else 100_000)
            else:
                await measure(port, proxy.pid, rate, seconds)
        finally:
            proxy.terminate()
            proxy.wait()
        bare_commits(tempfile.mkdtemp(dir=directory))


asyncio.run(main())
