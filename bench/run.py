#!/usr/bin/env python3
"""Compares the cost of wecom-proxy with nginx and HAProxy on this machine, in about three minutes.

    python3 bench/run.py [--pingora]

Requires Linux, two CPUs, cargo, wrk, h2load and nginx. HAProxy and nginx's Lua module add rows if they are installed:
apt install wrk nghttp2-client nginx haproxy libnginx-mod-http-lua. --pingora adds a small proxy on pingora, whose build takes
some minutes the first time, in ~/.cache/wecom-proxy-bench. Uses only 127.0.0.1 and a temporary directory; all processes that
it starts end with it. docs/performance.md explains the numbers.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import os
import pathlib
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# No __pycache__ in the tree.
sys.dont_write_bytecode = True
from peers import KEY, LUA_MODULES, MB, Problem, find, haproxy, nginx_inject, nginx_lua, pingora, program, stand_in, wecom_proxy

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MESSAGE = '{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"%s"}}' % ("x" * 420)
FILE = f"string.rep('x', {10 * MB})"
GET = "/hr/cgi-bin/user/get?userid=zhangsan"
IDLE = 1000
HTTP2, STREAMS = "GET over HTTP/2", 10
LUA = "nginx + Lua, whole job"

# name, target, request body in wrk's Lua, minimum bytes of a response, connections, whether each request uses a new connection
SCENARIOS = [
    ("small GET", GET, "", 100, 64, False),
    ("small POST", "/hr/cgi-bin/message/send?debug=0", f"'{MESSAGE}'", 100, 64, False),
    ("GET, new connection", GET, "", 100, 64, True),
    (HTTP2, GET, "", 100, 20, False),
    ("1 MB JSON down", "/hr/cgi-bin/user/list?department_id=1", "", MB, 16, False),
    ("10 MB down", "/hr/cgi-bin/media/get?media_id=1", "", 10 * MB, 4, False),
    ("10 MB up", "/hr/cgi-bin/media/upload?type=file", FILE, 100, 4, False),
]


def free_ports(count):
    """Free ports below the ephemeral range, so that no process with an ephemeral port can take them meanwhile; the first
    depends on the process id, so that two benchmarks start at different ports."""
    found, first = [], 16 * os.getpid() % 10000
    for nth in range(10000):
        port = 21000 + (first + nth) % 10000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise Problem("no free ports between 21000 and 31000")


def end_with_parent():
    """In a child process: makes it end with this program, even if this program is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Server:
    """A server process on one port and one CPU."""

    def __init__(self, name, port, command, cpu, log):
        self.name, self.port, self.command, self.cpu, self.log = name, port, command, cpu, log
        self.http2_port = port
        self.process = None

    def __enter__(self):
        def prepare():
            end_with_parent()
            os.sched_setaffinity(0, {self.cpu})

        environment = {key: value for key, value in os.environ.items() if key not in ("RUST_LOG", "NOTIFY_SOCKET")}
        with open(self.log, "ab") as log:
            # A new session, so that Ctrl-C reaches only this program, which then ends the others.
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=environment, start_new_session=True, preexec_fn=prepare)
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self):
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Problem(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            # Its session contains only its own processes.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def processes(self):
        """The process and its children, such as nginx's worker."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [pathlib.Path("/proc", str(pid)) for pid in [self.process.pid, *children]]

    def cpu_us(self):
        """CPU time so far in microseconds, kernel time included."""
        tasks = [task for process in self.processes() for task in process.glob("task/*/schedstat")]
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1000

    def memory_kb(self, line):
        """A value of /proc/PID/status of the serving process, in KB."""
        lines = (self.processes()[-1] / "status").read_text().splitlines()
        return int(next(found for found in lines if found.startswith(line)).split()[1])

    def reset_peak_memory(self):
        (self.processes()[-1] / "clear_refs").write_text("5")


def end_wrk(wrk):
    """Ends wrk with an interrupt, because its duration is in whole seconds, and returns its output. An interrupt just
    before wrk sleeps is lost, so it is repeated."""
    for _ in range(15):
        wrk.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return wrk.communicate(timeout=2)[0]
    raise Problem("wrk does not end")


def wrk(server, scenario, seconds, directory):
    """Requests, duration in µs, received bytes, errors, and two latencies in µs of one run of wrk; zeros if it fails."""
    _, target, body, _, connections, close = scenario
    script = directory / "wrk.lua"
    script.write_text((f"wrk.method = 'POST'; wrk.body = {body}" if body else "") + """
      function done(summary, latency)
        local e = summary.errors
        print(string.format('RESULT [%d, %d, %d, %d, %d, %d]', summary.requests, summary.duration, summary.bytes,
          e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
      end""")
    command = [program("wrk"), "-t1", f"-c{connections}", "-d60s", "--timeout", "20s", "-s", script]
    command += ["-H", f"X-Api-Key: {KEY}"] + (["-H", "Connection: close"] if close else [])
    with subprocess.Popen(command + [f"http://127.0.0.1:{server.port}{target}"], stdout=subprocess.PIPE, text=True,
                          start_new_session=True, preexec_fn=end_with_parent) as process:
        try:
            time.sleep(seconds)
            output = end_wrk(process)
        finally:
            process.kill()
    result = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(result[0][7:]) if result else [0] * 6, output


def h2load(server, scenario, seconds, directory):
    """The same of one run of h2load, in clear text."""
    _, target, _, _, connections, _ = scenario
    times = directory / "h2load.times"
    times.unlink(missing_ok=True)
    command = [program("h2load", "nghttp2-client"), f"-c{connections}", f"-m{STREAMS}", f"-D{int(seconds * 1000)}ms",
               "-H", f"X-Api-Key: {KEY}", f"--log-file={times}", f"http://127.0.0.1:{server.http2_port}{target}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=end_with_parent)
    counts = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", run.stdout)
    received = re.search(r"traffic: .*\((\d+)\) total", run.stdout)
    if not counts or not received or not times.exists():
        return [0] * 6, run.stdout + run.stderr
    ok, *failed = map(int, counts.groups())
    took = sorted(int(line.split()[2]) for line in times.read_text().splitlines()) or [0]
    percentile = lambda share: took[min(len(took) - 1, int(len(took) * share))]
    return [ok, seconds * 1e6, int(received[1]), sum(failed), percentile(0.5), percentile(0.99)], run.stdout


def load(server, scenario, seconds, directory):
    """One run of the load generator against one server."""
    name, _, _, min_bytes, *_ = scenario
    server.reset_peak_memory()
    before = server.cpu_us()
    result, output = (h2load if name == HTTP2 else wrk)(server, scenario, seconds, directory)
    cpu_us = server.cpu_us() - before
    requests, duration_us, received, errors, p50, p99 = result
    if any(result) and not requests and not errors and seconds < 5:
        # The machine is too slow, or the body too large, for this duration.
        return load(server, scenario, 4 * seconds, directory)
    if errors or not requests or received < requests * min_bytes:
        raise Problem(f"{server.name}, {name}: {requests} responses, {errors} errors; output:\n{output}")
    return {"cpu": cpu_us / requests, "rate": requests / duration_us * 1e6, "p50": p50 / 1000, "p99": p99 / 1000,
            "peak": server.memory_kb("VmHWM") / 1024, "busy": cpu_us / duration_us * 100}


def idle(server):
    """Resident memory in KB at rest, and with IDLE persistent connections after one response each."""
    def open_connection():
        connection = socket.create_connection(("127.0.0.1", server.port), 5)
        connection.sendall(f"GET {GET} HTTP/1.1\r\nHost: wecom\r\nX-Api-Key: {KEY}\r\n\r\n".encode())
        response = b""
        while not response.endswith(b"}"):
            chunk = connection.recv(65536)
            if not chunk:
                raise Problem(f"{server.name} closed a connection after: {response.decode(errors='replace')}")
            response += chunk
        if b'"zhangsan"' not in response:
            raise Problem(f"{server.name} sent: {response.decode(errors='replace')}")
        return connection

    with open_connection():
        before = server.memory_kb("VmRSS")
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(open_connection())
        return before, server.memory_kb("VmRSS")


def build_pingora():
    """Builds the peer on pingora outside the source tree, and returns its path."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"), "wecom-proxy-bench", "pingora")
    manifest = REPOSITORY / "bench" / "pingora" / "Cargo.toml"
    program("cmake"), program("g++")
    subprocess.run([program("cargo"), "build", "--release", "--locked", "--manifest-path", manifest],
                   env={**os.environ, "CARGO_TARGET_DIR": str(cache)}, check=True)
    return cache / "release" / "pingora-inject"


def choose_cpus():
    """One CPU for the proxy and one for the load, on different cores if possible."""
    cpus = sorted(os.sched_getaffinity(0))
    siblings = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpus[0]}/topology/thread_siblings_list")
    same = siblings.read_text().strip().replace("-", ",").split(",") if siblings.exists() else []
    others = [cpu for cpu in cpus[1:] if str(cpu) not in same] or cpus[1:]
    if not others:
        print("Only one CPU: the load and the proxies share it.", file=sys.stderr)
    return cpus[0], (others or cpus)[0]


def warn_unless_idle():
    """Warns if other processes use the CPU, which distorts every number."""
    def busy_ticks():
        user, nice, system = pathlib.Path("/proc/stat").read_text().split()[1:4]
        return int(user) + int(nice) + int(system)

    before = busy_ticks()
    time.sleep(0.5)
    share = (busy_ticks() - before) / (0.5 * os.sysconf("SC_CLK_TCK"))
    if share > 0.1:
        print(f"Other programs use {share:.0%} of a CPU: the numbers are unreliable until they have ended.", file=sys.stderr)


def print_tables(names, at_rest, runs):
    """Prints Markdown tables. A number is the median of the rounds, a ratio the median of the ratios within a round."""
    def ratio(scenario, name, other):
        pairs = zip(runs[scenario, name], runs[scenario, other])
        return f"{statistics.median(mine['cpu'] / theirs['cpu'] for mine, theirs in pairs):.2f}"

    references = [name for name in ("nginx", "HAProxy", "pingora") if name in names]
    columns = ["CPU µs a request", *(f"÷ {name}" for name in references), "requests/s", "CPU busy", "p50 ms", "p99 ms", "peak MB"]
    print(f"| | | {' | '.join(columns)} |")
    print("|---|---|" + "--:|" * len(columns))
    for scenario, *_ in SCENARIOS:
        for name in (name for name in names if (scenario, name) in runs):
            of = {key: statistics.median(run[key] for run in runs[scenario, name]) for key in runs[scenario, name][0]}
            digits = 1 if of["cpu"] < 1000 else 0
            ratios = " | ".join(ratio(scenario, name, other) for other in references)
            print(f"| {scenario} | {name} | {of['cpu']:,.{digits}f} | {ratios} | {of['rate']:,.0f} | {of['busy']:.0f}% "
                  f"| {of['p50']:.2f} | {of['p99']:.2f} | {of['peak']:.1f} |")
    print(f"\n| | resident MB at rest | with {IDLE:,} idle connections | KB each |")
    print("|---|--:|--:|--:|")
    for name in names:
        before, after = at_rest[name]
        print(f"| {name} | {before / 1024:.1f} | {after / 1024:.1f} | {(after - before) / IDLE:.1f} |")


def measure(options, directory, binary):
    proxy_cpu, load_cpu = choose_cpus()
    warn_unless_idle()
    # Child processes inherit it: the load generator and the stand-in share this CPU.
    os.sched_setaffinity(0, {load_cpu})
    # Before version 1.25, a port of nginx in clear text serves one version of HTTP.
    wecom, nginx_http2, *ports = free_ports(8)
    kinds = {"nginx": functools.partial(nginx_inject, http2_port=nginx_http2)}
    if find("haproxy"):
        kinds["HAProxy"] = haproxy
    if all(module.exists() for module in LUA_MODULES):
        kinds[LUA] = nginx_lua
    missing = {"HAProxy": "haproxy", LUA: "libnginx-mod-http-lua"}
    for package in (package for name, package in missing.items() if name not in kinds):
        print(f"Not compared, because it is missing: apt install {package}", file=sys.stderr)
    if options.pingora:
        kinds["pingora"] = pingora(build_pingora())
    kinds["wecom-proxy"] = wecom_proxy(binary, "false")
    kinds["wecom-proxy, access log"] = wecom_proxy(binary, "true")
    server = lambda name, port, command, cpu: Server(name, port, command, cpu, directory / f"{port}.log")
    peers = [server(name, port, kind(directory, port, wecom), proxy_cpu) for (name, kind), port in zip(kinds.items(), ports)]
    peers[0].http2_port = nginx_http2
    with server("the stand-in for WeCom", wecom, stand_in(directory, wecom), load_cpu), contextlib.ExitStack() as running:
        at_rest = {}
        for peer in peers:
            # A new process, because one that has served requests would reuse memory that it already holds.
            with peer:
                at_rest[peer.name] = idle(peer)
        for peer in peers:
            running.enter_context(peer)
        runs = {}
        for nth in range(options.rounds):
            print(f"round {nth + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for scenario in SCENARIOS:
                # Lua's subrequests do not work over HTTP/2.
                compared = [peer for peer in peers if (scenario[0], peer.name) != (HTTP2, LUA)]
                # Compared runs are adjacent in time, and the first peer rotates.
                for at in range(len(compared)):
                    peer = compared[(at + nth) % len(compared)]
                    run = load(peer, scenario, options.seconds, directory)
                    runs.setdefault((scenario[0], peer.name), []).append(run)
    print_tables(list(kinds), at_rest, runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each run")
    parser.add_argument("--smoke", action="store_true", help="one short round, to test that it works")
    parser.add_argument("--pingora", action="store_true", help="also build and compare a small proxy on pingora")
    parser.add_argument("--program", type=pathlib.Path, help="path of a built wecom-proxy")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seconds = 1, 0.2

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number, _):
        # Ignores further signals, so that all processes end and the directory is removed.
        for other in ends:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)
    for number in ends:
        signal.signal(number, end)

    program("wrk"), program("h2load", "nghttp2-client"), program("nginx")
    if not pathlib.Path("/proc/self/schedstat").exists():
        raise Problem("no /proc/PID/schedstat: this kernel does not count CPU time there")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 4 * IDLE:
        raise Problem(f"the limit of open files is {hard}, {4 * IDLE} are needed: see ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (16 * IDLE if hard == resource.RLIM_INFINITY else min(hard, 16 * IDLE), hard))
    binary = options.program and options.program.resolve()
    if not binary:
        subprocess.run([program("cargo"), "build", "--release", "--locked"], cwd=REPOSITORY, check=True)
        binary = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release" / "wecom-proxy"
    with tempfile.TemporaryDirectory(prefix="wecom-proxy-bench-") as directory:
        measure(options, pathlib.Path(directory), binary)


if __name__ == "__main__":
    try:
        main()
    except (Problem, subprocess.CalledProcessError) as problem:
        sys.exit(f"bench/run.py: {problem}")
