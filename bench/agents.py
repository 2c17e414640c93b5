"""How long it takes to put very many agents over four kept connections, beside bare SQLite commits on the same disk; how long
one more change takes until it is in force; and the memory over as many changes again.

    python3 bench/agents.py [AGENTS [DIRECTORY [PROGRAM]]]

Needs the release build. The state is in DIRECTORY, by default that of the build, since a temporary one is often in memory.
"""

import hashlib
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CONNECTIONS, BARE_COMMITS, SINGLE_CHANGES = 4, 3_000, 200
ADMIN_KEY = "the-key-of-the-operator-0123456789"
CONFIG = """
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://127.0.0.1:9"
[log]
access = false
level = "error"
[admin]
listen = "127.0.0.1:0"
key_sha256 = "{hash}"
[state]
path = "state.db"
key = "key-of-the-state-0123456789-0123456789"
"""


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def call(self, method, path, body=b""):
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.socket.recv(65536)
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        while len(self.rest) < length:
            self.rest += self.socket.recv(65536)
        self.rest = self.rest[length:]
        return int(lines[0].split()[1]), lines

    def put(self, number, version):
        table = {"corpid": f"ww{number:016x}", "secret": f"secret-{version}-of-agent-{number:08}-" + "x" * 20}
        return self.call("PUT", f"/api/agents/a{number:06}", json.dumps(table).encode())[0]


def bare_commits_per_second(directory):
    connection = sqlite3.connect(os.path.join(directory, "bare.db"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = full")
    connection.execute("CREATE TABLE t (name TEXT PRIMARY KEY, value BLOB)")
    begin = time.monotonic()
    for number in range(BARE_COMMITS):
        connection.execute("INSERT INTO t VALUES (?, ?)", (f"a{number}", os.urandom(300)))
    return BARE_COMMITS / (time.monotonic() - begin)


def start(program, directory):
    config = os.path.join(directory, "proxy.toml")
    with open(config, "w") as file:
        file.write(CONFIG.format(hash=hashlib.sha256(ADMIN_KEY.encode()).hexdigest()))
    environment = {**os.environ, "RUST_LOG": "error,wecom_proxy::cli=info"}
    process = subprocess.Popen([program, "--config", config], stderr=subprocess.PIPE, text=True, env=environment)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "ready" in line:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            port = lambda name: int(line.split(f'{name}="')[1].split('"')[0].rsplit(":", 1)[1])
            return process, port("listen"), port("admin")
    sys.exit("it did not start:\n" + "".join(lines))


def put_all(port, agents, version, expected):
    failed = []

    def work(nth):
        connection = Connection(port)
        for number in range(nth, agents, CONNECTIONS):
            if connection.put(number, version) != expected:
                failed.append(number)

    threads = [threading.Thread(target=work, args=(nth,)) for nth in range(CONNECTIONS)]
    begin = time.monotonic()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if failed:
        sys.exit(f"{len(failed)} agents were refused, such as {failed[0]}")
    return time.monotonic() - begin


def resident_mib(process):
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


def single_changes(port, admin, agents):
    """Milliseconds from the request to the response, after which the change is checked to be in force."""
    proxy, connection, took = Connection(port), Connection(admin), []
    for number in range(agents, agents + SINGLE_CHANGES):
        begin = time.monotonic()
        assert connection.put(number, 0) == 201
        took.append((time.monotonic() - begin) * 1000)
        status, lines = proxy.call("GET", f"/a{number:06}/cgi-bin/user/get?userid=a")
        assert b"x-wecom-proxy-error: token-unavailable" in lines, (status, lines)
    return sorted(took)


def main():
    agents = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    parent = sys.argv[2] if len(sys.argv) > 2 else "target"
    program = sys.argv[3] if len(sys.argv) > 3 else "target/release/wecom-proxy"
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        bare = bare_commits_per_second(directory)
        process, port, admin = start(os.path.abspath(program), directory)
        empty = resident_mib(process)
        seconds = put_all(admin, agents, 0, 201)
        allowed = max(120, 30_000 / bare)
        print(f"{agents} agents put over {CONNECTIONS} connections in {seconds:.1f} s ({agents / seconds:.0f}/s)")
        print(f"bare SQLite: {bare:.0f} commits/s, so {allowed:.0f} s are allowed for 100,000")
        took = single_changes(port, admin, agents)
        print(
            f"one more change in force: median {statistics.median(took):.1f} ms, "
            f"p99 {took[len(took) * 99 // 100]:.1f} ms, longest {took[-1]:.1f} ms"
        )
        full = resident_mib(process)
        print(f"resident: {empty:.0f} MiB empty, {full:.0f} MiB with the agents")
        for version in range(1, 3):
            seconds = put_all(admin, agents, version, 200)
            print(f"{agents} changes of these in {seconds:.1f} s; resident: {resident_mib(process):.0f} MiB")
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
