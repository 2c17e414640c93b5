#!/usr/bin/env python3
"""Measures the table "When something fails" of docs/operations.md, with the default time limits, in about five minutes.

    sudo python3 bench/failures.py [PROGRAM]

PROGRAM is the built program, by default target/release/wecom-proxy. Requires Linux, root, iproute2 and redis-server. Exits with 1
if a line is not as the table says. Runs in a network namespace of its own, so that a name server can have port 53 and a link can
fail; all processes that it starts end with it.
"""

import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else str(REPOSITORY / "target/release/wecom-proxy")
GET, POST = ("GET", "/hr/cgi-bin/user/get?userid=zhangsan", None), ("POST", "/hr/cgi-bin/message/send", b"{}")
OK = "200"
# Longer than any documented wait.
LIMIT = 100


class WeCom:
    """An upstream. `silent` names paths without a response, `broken` those whose response breaks off; `refused` is the number
    of calls whose token is refused."""

    def __init__(self, host="127.0.0.1"):
        self.silent, self.broken, self.refused, self.connections = (), (), 0, []
        self.listener = socket.create_server((host, 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.url, self.tokens = f"http://{host}:{self.port}", 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                self.connections.append(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with contextlib.suppress(OSError, ValueError, IndexError):
            reader = connection.makefile("rb")
            while line := reader.readline():
                length = 0
                while (header := reader.readline()).strip():
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                reader.read(length)
                path = line.split()[1].split(b"?")[0].decode()
                if path in self.silent:
                    time.sleep(LIMIT)
                body = {"errcode": 0, "errmsg": "ok"}
                if path.endswith("/gettoken"):
                    self.tokens += 1
                    body |= {"access_token": f"TOKEN{self.tokens}", "expires_in": 7200}
                elif self.refused:
                    self.refused -= 1
                    body = {"errcode": 42001, "errmsg": "access_token expired"}
                body = json.dumps(body).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                if path in self.broken:
                    # Of a download, the response headers go on at once.
                    head = head.replace(b"application/json", b"image/png") if "media" in path else head
                    connection.sendall(head + body[:10])
                    time.sleep(0.2)
                    break
                connection.sendall(head + body)
        connection.close()

    def hang_up(self):
        for one in self.connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.hang_up()


class Relay:
    """TCP to a port; after `freeze`, the connections so far stay open and transport nothing, as behind a dead link."""

    def __init__(self, port):
        self.port_behind, self.frozen, self.pairs = port, set(), []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            caller = self.listener.accept()[0]
            behind = socket.create_connection(("127.0.0.1", self.port_behind))
            self.pairs.append(caller)
            for a, b in ((caller, behind), (behind, caller)):
                threading.Thread(target=self.copy, args=(caller, a, b), daemon=True).start()

    def copy(self, key, a, b):
        with contextlib.suppress(OSError):
            while data := a.recv(65536):
                while key in self.frozen:
                    time.sleep(0.2)
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)

    def freeze(self):
        self.frozen.update(self.pairs)


class NameServer:
    """Knows `wecom.test`. Its mode is ok, servfail or silent."""

    # Each server has an address of its own: their port is always 53.
    count = 0

    def __init__(self, mode="ok"):
        NameServer.count += 1
        self.mode, self.address = mode, f"127.0.53.{os.getpid() % 100 + NameServer.count}"
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((self.address, 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            query, peer = self.socket.recvfrom(1500)
            end = query.index(b"\0", 12) + 5
            if self.mode == "silent":
                continue
            found = int.from_bytes(query[end - 4 : end - 2], "big") == 1 and self.mode == "ok"
            flags = b"\x81\x82" if self.mode == "servfail" else b"\x81\x80"
            response = query[:2] + flags + b"\0\1" + (b"\0\1" if found else b"\0\0") + b"\0\0\0\0" + query[12:end]
            if found:
                response += b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x7f\0\0\1"
            self.socket.sendto(response, peer)

    def namespace(self, directory):
        """A command line that runs another one which asks this server."""
        (directory / "resolv.conf").write_text(f"nameserver {self.address}\n")
        (directory / "nsswitch.conf").write_text("hosts: files dns\n")
        script = f'mount --bind {directory}/resolv.conf "$(readlink -f /etc/resolv.conf)"'
        return namespace(f"{script} && mount --bind {directory}/nsswitch.conf /etc/nsswitch.conf")


def namespace(mounts):
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


class Proxy:
    def __init__(self, stack, url, more="", upstream="", wrap=lambda directory: [], port=None):
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="failures-")))
        (directory / "full").mkdir()
        self.port, self.admin = port or free_port(), free_port()
        self.log = directory / "log"
        (directory / "proxy.toml").write_text(
            f'[server]\nlisten = "127.0.0.1:{self.port}"\n[admin]\nlisten = "127.0.0.1:{self.admin}"\n'
            f'[upstream]\nurl = "{url}"\n{upstream}\n[agents.hr]\ncorpid = "ww00failure"\nsecret = {{ env = "HR" }}\n'
            f'[agents.ops]\ncorpid = "ww00failure"\nsecret = {{ env = "OPS" }}\n{more}'
        )
        environment = os.environ | {"HR": "a-secret-of-hr", "OPS": "a-secret-of-ops", "KEY": "a-key-of-the-store-0123456789-0123456789"}
        command = [*wrap(directory), PROGRAM, "--config", str(directory / "proxy.toml")]
        self.process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self.log.open("wb"),
        )
        stack.callback(self.stop)
        wait_until(lambda: can_connect(self.admin) or self.process.poll() is not None, "the proxy")
        if self.process.poll() is not None:
            raise SystemExit(self.log.read_text())

    def stop(self):
        for _ in range(2):
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
                return
        self.process.kill()
        self.process.wait()

    def call(self, request):
        """How the call ended ("200", or the kind of the proxy's error, or "broken off"), after how many seconds, and the JSON."""
        method, target, body = request
        began, connection = time.monotonic(), http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request(method, target, body)
            response = connection.getresponse()
            body = response.read()
            outcome = response.headers.get("x-wecom-proxy-error", str(response.status))
        except (OSError, http.client.HTTPException):
            outcome, body = "broken off", b""
        finally:
            connection.close()
        with contextlib.suppress(ValueError):
            return outcome, time.monotonic() - began, json.loads(body)
        return outcome, time.monotonic() - began, {}

    def until_ok(self, request):
        """Seconds until a call succeeds, called once more every 0.1 s."""
        began = time.monotonic()
        while self.call(request)[0] != OK:
            if time.monotonic() - began > LIMIT:
                return float("inf")
            time.sleep(0.1)
        return time.monotonic() - began

    def store_ok(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
            connection.request("GET", "/readyz")
            return json.loads(connection.getresponse().read())["store"]["ok"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def can_connect(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, what, limit=30):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {limit} s")
        time.sleep(0.05)


def for_agent(request, agent):
    return (request[0], request[1].replace("/hr/", f"/{agent}/"), request[2])


def in_parallel(count, work):
    results, threads = [], []
    for _ in range(count):
        threads.append(threading.Thread(target=lambda: results.append(work())))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return results


def worst(results):
    return max(results, key=lambda result: (result[0] != OK, result[1]))


class Table:
    """The lines, and whether each is as the documentation says."""

    def __init__(self):
        self.lines, self.failed = [], False

    def line(self, name, got, outcome, least=0.0, most=0.0):
        """The call ended so, after `least` to `most` seconds; half a second more is allowed for a busy machine."""
        is_right = got[0] == outcome and least - 0.05 <= got[1] <= most + 0.5
        self.failed |= not is_right
        expected = "" if is_right else f"   EXPECTED {outcome} in {least:g} to {most:g} s"
        self.lines.append(f"{name:<72} {got[0]:<20} {got[1]:6.2f} s{expected}")
        print(self.lines[-1], flush=True)

    def back(self, name, seconds, most):
        """It works again within `most` seconds."""
        self.line(f"{name}: works again", (OK, seconds), OK, 0, most)


def dns(table, stack):
    """The name server is silent or fails: from the start, and after a good result."""
    for mode, most in (("silent", 5), ("servfail", 1)):
        wecom, names = WeCom(), NameServer()
        proxy = Proxy(stack, f"http://wecom.test:{wecom.port}", wrap=names.namespace)
        names.mode = mode
        table.line(f"DNS {mode}, name never resolved", proxy.call(GET), "token-unavailable", 0, most)
        names.mode = "ok"
        table.back(f"DNS {mode}, name never resolved", proxy.until_ok(GET), 7)
        # Each worker keeps a connection then.
        in_parallel(64, lambda: proxy.call(POST))
        names.mode = mode
        table.line(f"DNS {mode}, kept connections", worst(in_parallel(20, lambda: proxy.call(POST))), OK)
        # Beyond the time for which a result is used without a question.
        time.sleep(31)
        wecom.hang_up()
        time.sleep(0.5)
        results = in_parallel(20, lambda: proxy.call(POST))
        table.line(f"DNS {mode}, resolved before, 20 calls at once on new connections", worst(results), OK, 0, 5)
        table.line(f"DNS {mode}, resolved before, a later call", proxy.call(POST), OK)


def network(table, stack):
    wecom = WeCom()
    proxy = Proxy(stack, wecom.url)
    table.line("network: as it should be", worst(in_parallel(64, lambda: proxy.call(POST))), OK)
    wecom.stop()
    table.line("network: WeCom's address refuses connections", proxy.call(POST), "upstream-unreachable")
    # A full backlog drops SYNs, as a firewall does.
    full = socket.create_server(("127.0.0.1", wecom.port), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", wecom.port))
    time.sleep(0.5)
    table.line("network: WeCom's address is silent", proxy.call(POST), "upstream-unreachable", 5, 5)
    for one in [full, *fillers]:
        one.close()

    wecom = WeCom()
    relay = Relay(wecom.port)
    proxy = Proxy(stack, f"http://127.0.0.1:{relay.port}")
    in_parallel(8, lambda: proxy.call(POST))
    relay.freeze()
    table.line("network: kept connections dead, first call", proxy.call(POST), "upstream-timeout", 30, 30)
    table.line("network: kept connections dead, second call", proxy.call(POST), OK)
    wecom.hang_up()
    time.sleep(0.5)
    table.line("network: kept connections closed by the other side", proxy.call(POST), OK)


def dead_link(table, stack):
    """Packets to WeCom vanish, and nothing reports it."""
    other = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    stack.callback(other.kill)
    wait_until(lambda: os.readlink(f"/proc/{other.pid}/ns/net") != os.readlink("/proc/self/ns/net"), "a namespace")
    inside = ["nsenter", "-t", str(other.pid), "-n"]
    mac = "02:00:00:00:00:02"
    ip("link add near type veth peer name far address", mac, "netns", str(other.pid))
    ip("address add 10.9.9.1/30 dev near")
    ip("link set near up")
    # Without it, the kernel would report that the neighbour does not respond.
    ip("neighbour add 10.9.9.2 dev near nud permanent lladdr", mac)
    address = "address add 10.9.9.2/30 dev far"
    ip(address, prefix=inside)
    ip("link set far up", prefix=inside)
    with network_namespace(other.pid):
        wecom = WeCom("10.9.9.2")
    proxy = Proxy(stack, wecom.url)
    fill = lambda: worst(in_parallel(64, lambda: proxy.call(POST)))
    table.line("dead link: as it should be", fill(), OK)
    ip(address.replace(" add ", " delete "), prefix=inside)
    # Longer than the probes of TCP keep-alive take.
    time.sleep(40)
    table.line("dead link, connections idle for 40 s", proxy.call(POST), "upstream-unreachable", 5, 5)
    ip(address, prefix=inside)
    table.back("dead link", proxy.until_ok(POST), 2)
    fill()
    ip(address.replace(" add ", " delete "), prefix=inside)
    results = in_parallel(8, lambda: proxy.call(POST))
    table.line("dead link, 8 calls at once on kept connections", worst(results), "upstream-timeout", 5, 30)


def ip(*words, prefix=()):
    subprocess.run([*prefix, "ip", *" ".join(words).split()], check=True)


@contextlib.contextmanager
def network_namespace(pid):
    """Sockets that are made meanwhile are in the namespace of this process."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(file):
        if libc.setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")

    with open("/proc/self/ns/net") as own, open(f"/proc/{pid}/ns/net") as other:
        enter(other)
        try:
            yield
        finally:
            enter(own)


def wecom_itself(table, stack):
    wecom = WeCom()
    proxy = Proxy(stack, wecom.url)
    assert proxy.call(GET)[0] == OK
    wecom.silent = ("/cgi-bin/message/send",)
    table.line("WeCom does not respond to a path", proxy.call(POST), "upstream-timeout", 30, 30)
    table.line("WeCom does not respond to a path, another path", proxy.call(GET), OK)
    wecom.silent, wecom.broken = (), ("/cgi-bin/message/send", "/cgi-bin/media/get")
    table.line("WeCom breaks off its response", proxy.call(POST), "upstream-broke", 0, 0.2)
    download = ("GET", "/hr/cgi-bin/media/get?media_id=1", None)
    table.line("WeCom breaks off its response, after the headers", proxy.call(download), "broken off", 0, 0.2)
    wecom.broken, wecom.silent = (), ("/cgi-bin/gettoken",)
    table.line("gettoken silent, valid token", proxy.call(POST), OK)
    first = proxy.call(for_agent(POST, "ops"))
    table.line("gettoken silent, no token", first, "token-unavailable", 30, 30)
    table.line("gettoken silent, no token, during the backoff", proxy.call(for_agent(POST, "ops")), "token-unavailable")
    wecom.silent = ()
    table.back("gettoken silent, no token", proxy.until_ok(for_agent(POST, "ops")), 2)


def egress_proxy(table, stack):
    wecom = WeCom()
    proxy = Proxy(stack, wecom.url, upstream=f'via = "http://127.0.0.1:{free_port()}"')
    table.line("egress proxy refuses connections, no token", proxy.call(POST), "token-unavailable")
    mute = socket.create_server(("127.0.0.1", 0), backlog=64)
    proxy = Proxy(stack, wecom.url, upstream=f'via = "http://127.0.0.1:{mute.getsockname()[1]}"')
    table.line("egress proxy silent, no token", proxy.call(POST), "token-unavailable", 5, 5)
    relay = Relay(wecom.port)

    def tunnel():
        with contextlib.suppress(OSError):
            while True:
                caller = relay_listener.accept()[0]
                caller.recv(4096)
                caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                tunnels.append(caller)
                behind = socket.create_connection(("127.0.0.1", wecom.port))
                for a, b in ((caller, behind), (behind, caller)):
                    threading.Thread(target=relay.copy, args=(caller, a, b), daemon=True).start()

    tunnels = []
    relay_listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = relay_listener.getsockname()[1]
    threading.Thread(target=tunnel, daemon=True).start()
    proxy = Proxy(stack, wecom.url, upstream=f'via = "http://127.0.0.1:{port}"')
    # Each worker keeps a connection then.
    table.line("egress proxy: as it should be", worst(in_parallel(64, lambda: proxy.call(POST))), OK)
    relay_listener.shutdown(socket.SHUT_RDWR)
    relay_listener.close()
    table.line("egress proxy gone, kept connection", proxy.call(POST), OK)
    for caller in tunnels:
        caller.shutdown(socket.SHUT_RDWR)
    # A POST that crosses the end of its connection may have been executed: it is not sent again.
    time.sleep(0.5)
    table.line("egress proxy gone, new connection", proxy.call(POST), "upstream-unreachable")


def redis(table, stack):
    wecom, port = WeCom(), free_port()
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="failures-"))

    def start():
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", directory]
        server = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        stack.callback(server.kill)
        wait_until(lambda: can_connect(port), "redis-server")
        return server

    store = f'[tokens]\nstore = {{ redis = "redis://127.0.0.1:{port}/0", key = {{ env = "KEY" }} }}\n'
    server = start()
    for name, fail, mend in (
        ("stopped", lambda server: (server.kill(), server.wait()), lambda server: start()),
        ("silent", lambda server: server.send_signal(signal.SIGSTOP), lambda server: server.send_signal(signal.SIGCONT) or server),
    ):
        proxy = Proxy(stack, wecom.url, more=store)
        assert proxy.call(POST)[0] == OK
        fail(server)
        table.line(f"Redis {name}, valid token", proxy.call(POST), OK)
        table.line(f"Redis {name}, first token of an agent", proxy.call(for_agent(POST, "ops")), OK, 0, 1)
        wait_until(lambda: proxy.store_ok() is False, "the report")
        late = Proxy(stack, wecom.url, more=store)
        table.line(f"Redis {name}, proxy started meanwhile, first call", late.call(POST), OK, 0, 1)
        began, server = time.monotonic(), mend(server)
        wait_until(lambda: proxy.store_ok() and late.store_ok(), "the store")
        table.back(f"Redis {name}", time.monotonic() - began, 5)


def disk(table, stack):
    wecom = WeCom()
    fill = "mount -t tmpfs -o size=64k none full && { head -c 65536 /dev/zero > full/filler 2>/dev/null; true; }"
    replay = '[replay]\nmemory = "1MiB"\ndir = "full"\n'
    proxy = Proxy(stack, wecom.url, more=replay, wrap=lambda directory: namespace(fill))
    large = (POST[0], POST[1], b"x" * (4 << 20))
    for name, request, expected in (("small body", POST, "0"), ("body of 4 MiB", large, "42001")):
        table.line(f"disk full (replay.dir), {name}", proxy.call(request), OK)
        wecom.refused = 1
        got = proxy.call(request)
        table.line(f"disk full (replay.dir), {name}, token refused", (str(got[2].get("errcode")), got[1]), expected)
    proxy = Proxy(stack, wecom.url, wrap=lambda directory: ["sh", "-c", 'exec "$@" 2>/dev/full', "sh"])
    table.line("disk full (log)", proxy.call(POST), OK)


def main():
    if os.geteuid() or not all(map(shutil.which, ("redis-server", "ip"))):
        raise SystemExit("needs root, iproute2 and redis-server")
    if "OWN_NETWORK" not in os.environ:
        os.environ["OWN_NETWORK"] = "1"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])
    ip("link set lo up")
    table = Table()
    with contextlib.ExitStack() as stack:
        for part in (network, dead_link, wecom_itself, egress_proxy, redis, disk, dns):
            part(table, stack)
    # Threads of dead connections still wait.
    sys.stdout.flush()
    os._exit(1 if table.failed else 0)


if __name__ == "__main__":
    main()
