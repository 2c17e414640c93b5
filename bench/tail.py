#!/usr/bin/env python3
"""Latencies of small GETs at a fixed rate, counted from the moment each was due: at half of saturation beside nginx, and
at a quarter of it while the proxy does other work, each on its own.

    python3 bench/tail.py [--agents 100000] [--rounds 20] [--program PATH]

Needs Linux, two CPUs, the release build, rustc and nginx. Uses only 127.0.0.1 and a temporary directory; all processes that
it starts end with it. As root, what is measured runs before other programs of the machine.
"""

import argparse
import contextlib
import ctypes
import http.client
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
import many
from many import call_each
from peers import KEY, Problem, nginx_inject, program, stand_in, wecom_proxy
from run import GET as SMALL_GET
from run import REPOSITORY, Server, choose_cpus, end_with_parent, free_ports

CONNECTIONS, NICENESS = 32, -15
COUNT = itertools.count()


def prefer(server):
    """Lets what is measured run before other programs, as far as this program may: its session has a niceness too."""
    with contextlib.suppress(PermissionError, FileNotFoundError):
        for process in server.processes():
            for task in process.glob("task/*"):
                os.setpriority(os.PRIO_PROCESS, int(task.name), NICENESS)
            (process / "autogroup").write_text(str(NICENESS))


def run_in_time(process):
    """Lets the load and its upstream run as soon as they have work, as far as this program may."""
    if "--smoke" not in sys.argv:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(process, os.SCHED_FIFO, os.sched_param(1))


class Proxy(many.Proxy):
    """With the access log in a pipe, where `logged`, which is read while `reads` is set."""

    def __init__(self, *arguments, logged=False):
        super().__init__(*arguments)
        self.reloads = 0
        self.reads = threading.Event()
        self.reads.set()
        if logged:
            self.config.write_text(self.config.read_text().replace("access = false", "access = true"))
            self.log = self.config.with_suffix(".pipe")
            os.mkfifo(self.log)
            threading.Thread(target=self.drain, args=[os.open(self.log, os.O_RDWR)], daemon=True).start()

    def drain(self, pipe):
        while self.reads.wait():
            os.read(pipe, 1 << 16)

    def place(self, main_cpu):
        """Leaves the worker where it is, and puts all other threads on this CPU."""
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            if not (task / "comm").read_text().startswith("worker"):
                os.sched_setaffinity(int(task.name), {main_cpu})


def pace(directory, server, rate, seconds, request):
    """One run of the load; returns requests a second, p50 and p99 in microseconds."""
    def prepare():
        end_with_parent()
        ctypes.CDLL(None).prctl(29, 1)  # PR_SET_TIMERSLACK: sleeps end in time.
        run_in_time(0)

    command = [directory / "pace", *map(str, (server.port, CONNECTIONS, rate, seconds))]
    result = subprocess.run(command, input=request, capture_output=True, start_new_session=True, preexec_fn=prepare)
    if result.returncode:
        raise Problem(f"{server.name}: {result.stderr.decode(errors='replace')[-2000:]}")
    return json.loads(result.stdout)


def reload(proxy):
    proxy.reloads += 1
    proxy.reload(proxy.reloads)


def call(method, path):
    """Work that calls the admin listener; `path` of a count."""
    def work(proxy):
        connection = http.client.HTTPConnection("127.0.0.1", proxy.admin, timeout=60)
        connection.request(method, path(next(COUNT)), headers={"X-Requested-With": "x"})
        response = connection.getresponse()
        response.read()
        connection.close()
        if response.status != 200:
            raise Problem(f"{method} {path(0)}: {response.status}")
    return work


def with_work(work, proxy, run):
    """A run while the work is done again and again; its result, and how often it was done."""
    stopped, errors, done = threading.Event(), [], 0

    def repeat():
        nonlocal done
        try:
            while not stopped.is_set():
                work(proxy)
                done += 1
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    time.sleep(0.1)
    result = run()
    stopped.set()
    thread.join()
    if errors:
        raise errors[0]
    return result | {"done": done}


def stalled(proxy, run):
    """A run while nothing reads the access log."""
    proxy.reads.clear()
    try:
        return run()
    finally:
        proxy.reads.set()


def table(runs):
    """The least and the median of the rounds, and the same of p99 divided by that of the first row."""
    print("| | p50 µs | p99 µs | median | ÷ first | median | done |\n|---|--:|--:|--:|--:|--:|--:|")
    first = [run["p99"] for run in next(iter(runs.values()))]
    for name, of in runs.items():
        p50, p99 = min(run["p50"] for run in of), [run["p99"] for run in of]
        ratio = statistics.median(mine / base for mine, base in zip(p99, first))
        done = sum(run.get("done", 0) for run in of) or "–"
        print(f"| {name} | {p50} | {min(p99)} | {statistics.median(p99):.0f} | {min(p99) / min(first):.2f} | {ratio:.2f} | {done} |")


def saturation(options, directory, servers, request):
    """Requests a second in a closed loop: the most of the rounds, of the server that has the least."""
    rounds = range(max(1, options.rounds // 3))
    return min(max(pace(directory, server, 0, options.seconds, request)["rate"] for _ in rounds) for server in servers)


def measure_rounds(options, rows):
    """Runs each row in each round, interleaved; the first one rotates."""
    runs = {name: [] for name in rows}
    for nth in range(options.rounds):
        names = [*rows][nth % len(rows):] + [*rows][:nth % len(rows)]
        for name in names:
            runs[name].append(rows[name]())
    return runs


def beside_nginx(options, directory, binary, wecom, cpu):
    request = f"GET {SMALL_GET} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\n\r\n".encode()
    kinds, ports = {"nginx": nginx_inject, "wecom-proxy": wecom_proxy(binary, "false")}, free_ports(2)
    servers = [Server(name, port, kind(directory, port, wecom), cpu, directory / f"{name}.log")
               for (name, kind), port in zip(kinds.items(), ports)]
    with contextlib.ExitStack() as running:
        for server in servers:
            running.enter_context(server)
            prefer(server)
        rate = saturation(options, directory, servers, request) / 2
        run = lambda server: lambda: pace(directory, server, rate, options.seconds, request)
        nginx, proxy = servers
        rows = {"nginx": run(nginx), "wecom-proxy": run(proxy), "nginx again": run(nginx), "wecom-proxy again": run(proxy)}
        print(f"\nAt half of saturation, {rate:,.0f} requests a second:\n")
        table(measure_rounds(options, rows))


def during_work(options, directory, binary, wecom, cpus):
    request = many.request(7, 0, 1)
    works = {
        "reloads": reload,
        "token renewals": call("POST", lambda count: f"/api/agents/a{count % options.agents}/refresh"),
        "scrapes": call("GET", lambda _: "/metrics"),
        "pages of agents": call("GET", lambda _: "/api/agents"),
        "pages of 1,000 agents by requests": call("GET", lambda _: "/api/agents?sort=requests&limit=1000"),
    }
    (directory / "logged").mkdir()
    large = [options.agents, 1, wecom, cpus[0]]
    with Proxy(directory, binary, *large) as proxy, Proxy(directory / "logged", binary, *large, logged=True) as logged:
        for each in (proxy, logged):
            prefer(each)
            call_each(each)
        rate = saturation(options, directory, [proxy, logged], request) / 4
        run = lambda proxy: lambda: pace(directory, proxy, rate, options.seconds, request)
        during = lambda work: lambda: with_work(work, proxy, run(proxy))
        rows = {"at rest": run(proxy), "at rest again": run(proxy)} | {name: during(work) for name, work in works.items()}
        rows_logged = {"at rest, access log": run(logged), "access log stalled": lambda: stalled(logged, run(logged))}
        for where, cpu in (("on the worker's core", cpus[0]), ("on the load's core", cpus[1])):
            proxy.place(cpu), logged.place(cpu)
            print(f"\nAt a quarter of saturation, {rate:,.0f} requests a second, all other threads {where}:\n")
            runs = measure_rounds(options, rows | rows_logged)
            table({name: runs[name] for name in rows})
            print()
            table({name: runs[name] for name in rows_logged})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each run")
    parser.add_argument("--smoke", action="store_true", help="one short round, to test that it works")
    parser.add_argument("--program", type=pathlib.Path, default=REPOSITORY / "target/release/wecom-proxy")
    options = parser.parse_args()
    if options.smoke:
        options.agents, options.rounds, options.seconds = 100, 1, 0.2
    cpus = choose_cpus()
    os.sched_setaffinity(0, {cpus[1]})
    with tempfile.TemporaryDirectory(prefix="wecom-proxy-tail-") as name:
        directory = pathlib.Path(name)
        subprocess.run([program("rustc"), "-O", "--edition", "2024", "-o", directory / "pace",
                        pathlib.Path(__file__).with_name("pace.rs")], check=True)
        [port] = free_ports(1)
        with Server("the stand-in for WeCom", port, stand_in(directory, port), cpus[1], directory / "wecom.log") as wecom:
            for process in wecom.processes():
                run_in_time(int(process.name))
            binary = options.program.resolve()
            beside_nginx(options, directory, binary, port, cpus[0])
            during_work(options, directory, binary, port, cpus)


if __name__ == "__main__":
    try:
        main()
    except (Problem, subprocess.CalledProcessError) as problem:
        sys.exit(f"bench/tail.py: {problem}")
