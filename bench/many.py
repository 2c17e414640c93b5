#!/usr/bin/env python3
"""What very many agents and clients cost: start, memory, reloads, and the CPU time and instructions of a small GET to one of
the agents. Each request asks for another user, as real ones do; each connection keeps one client's key.

    python3 bench/many.py [--agents 100000] [--clients 10000] [--rounds 5] [--program PATH]

Needs Linux, two CPUs, the release build, nginx and valgrind. Uses only 127.0.0.1 and a temporary directory; all
processes that it starts end with it.
"""

import argparse
import contextlib
import hashlib
import http.client
import os
import pathlib
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
from peers import Problem, program, stand_in
from run import REPOSITORY, Server, choose_cpus, free_ports

CONNECTIONS, SECONDS = 64, 1.5
COUNTED_REQUESTS = 2_048
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
RELOADS = 10
GET = "/cgi-bin/user/get?userid="


def key(number):
    return f"key-of-client-{number:08}-0123456789abcdef"


def agent(number, secret="secret"):
    return f'[agents.a{number}]\ncorpid = "ww{number:016x}"\nsecret = "{secret}-{number:024}"\n'


class Proxy(Server):
    """A proxy with a number of agents and of clients that may use all of them."""

    def __init__(self, directory, binary, agents, clients, wecom, cpu, prefix=()):
        self.agents, self.clients = agents, clients
        port, self.admin = free_ports(2)
        self.config = directory / f"{agents}-{clients}{'-counted' if prefix else ''}.toml"
        command = [*prefix, binary, "serve", "--config", self.config]
        super().__init__(f"{agents:,} agents, {clients:,} clients", port, command, cpu, self.config.with_suffix(".log"))
        self.write_config(wecom)

    def write_config(self, wecom):
        with open(self.config, "w") as file:
            file.write(f'[server]\nlisten = "127.0.0.1:{self.port}"\n[admin]\nlisten = "127.0.0.1:{self.admin}"\n')
            file.write(f'[upstream]\nurl = "http://127.0.0.1:{wecom}"\n[log]\naccess = false\n')
            file.writelines(agent(number) for number in range(self.agents))
            for number in range(self.clients):
                key_hash = hashlib.sha256(key(number).encode()).hexdigest()
                file.write(f'[clients.c{number}]\nkey_sha256 = "{key_hash}"\nagents = ["*"]\n')

    def wait(self):
        """Until it serves, also with 100,000 agents under valgrind; sets the time that took."""
        begin = time.monotonic()
        while time.monotonic() < begin + 120:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                self.ready_seconds = time.monotonic() - begin
                return
            time.sleep(0.002)
        raise Problem(f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")

    def resident_mib(self):
        return self.memory_kb("VmRSS") / 1024

    def reload(self, nth):
        """Reloads the file, waits until it is in force, and returns the CPU milliseconds."""
        before = self.total_cpu_ms()
        self.process.send_signal(signal.SIGHUP)
        while self.log.read_text(errors="replace").count("configuration reloaded") < nth:
            time.sleep(0.01)
        return self.total_cpu_ms() - before

    def total_cpu_ms(self):
        """With that of the threads that have ended, as the one that reads the file; in steps of 10 ms."""
        fields = (self.processes()[-1] / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")

    def call_admin(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=60)
        connection.request("GET", path)
        body = connection.getresponse().read()
        connection.close()
        return body


def load(proxy):
    """Requests to random agents, over connections of random clients; returns CPU microseconds of the proxy for each."""
    clients = [random.randrange(proxy.clients) for _ in range(CONNECTIONS)]
    connections = [(client, socket.create_connection(("127.0.0.1", proxy.port))) for client in clients]
    before, requests, end = proxy.cpu_us(), 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        for client, connection in connections:
            connection.sendall(request(random.randrange(proxy.agents), client, requests))
            requests += 1
        for _, connection in connections:
            receive(connection, 1)
    cpu_us = proxy.cpu_us() - before
    for _, connection in connections:
        connection.close()
    return cpu_us / requests


def call_each(proxy):
    """Calls each agent once over a few kept connections, so that each has a token."""
    connections = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(16)]
    for begin in range(0, proxy.agents, 16 * 8):
        for nth, connection in enumerate(connections):
            numbers = range(begin + nth * 8, min(begin + nth * 8 + 8, proxy.agents))
            connection.sendall(b"".join(request(number, 0, number) for number in numbers))
        for nth, connection in enumerate(connections):
            receive(connection, len(range(begin + nth * 8, min(begin + nth * 8 + 8, proxy.agents))))
    for connection in connections:
        connection.close()


def request(agent, client, user):
    return f"GET /a{agent}{GET}user{user % 100_000:05} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key(client)}\r\n\r\n".encode()


def receive(connection, responses):
    """Receives that many responses, each of which has to be WeCom's."""
    text = b""
    while text.count(b'"errcode":0') < responses:
        received = connection.recv(1 << 16)
        if not received or b"x-wecom-proxy-error" in received.lower():
            raise Problem(f"refused: {received[-500:]}")
        text += received


def instructions(proxy):
    """Instructions of a request, counted by callgrind, of requests to all agents over connections of many clients."""
    step = max(1, proxy.agents // COUNTED_REQUESTS) | 1
    clients = [nth * proxy.clients // CONNECTIONS for nth in range(CONNECTIONS)]
    connections = [(client, socket.create_connection(("127.0.0.1", proxy.port))) for client in clients]
    for counted in (False, True):
        if counted:
            # Quotas are counted a little later; the first time costs more.
            time.sleep(2)
            subprocess.run(["callgrind_control", "-i", "on", str(proxy.process.pid)], check=True, **QUIET)
        for number in range(COUNTED_REQUESTS):
            client, connection = connections[number % CONNECTIONS]
            connection.sendall(request(number * step % proxy.agents, client, number))
            receive(connection, 1)
    subprocess.run(["callgrind_control", "-i", "off", str(proxy.process.pid)], check=True, **QUIET)
    for _, connection in connections:
        connection.close()
    subprocess.run(["callgrind_control", "-d", str(proxy.process.pid)], check=True, **QUIET)
    dumps = proxy.config.parent.glob(f"callgrind.out.{proxy.process.pid}.*")
    totals = [int(total) for dump in dumps for total in re.findall(r"^(?:summary|totals): (\d+)", dump.read_text(), re.M)]
    return max(totals) / COUNTED_REQUESTS


def measure_large(proxy):
    """Start, memory and reloads of the proxy with the most agents."""
    started = proxy.resident_mib()
    print(f"{proxy.name}: serves after {proxy.ready_seconds:.2f} s, resident {started:.0f} MiB")
    call_each(proxy)
    warm = proxy.resident_mib()
    print(f"each agent with a token: resident {warm:.0f} MiB, {(warm - started) * 1024 * 1024 / proxy.agents:,.0f} bytes a token")
    changed, before = [], "secret"
    unchanged = [proxy.reload(nth + 1) for nth in range(RELOADS)]
    proxy.call_admin("/api/agents")
    print(f"{RELOADS} reloads, {statistics.mean(unchanged):,.0f} ms of CPU each, and a page of agents: resident {proxy.resident_mib():.0f} MiB")
    for nth in range(RELOADS):
        secret = f"changed-{nth}"
        proxy.config.write_text(proxy.config.read_text().replace(agent(7, before), agent(7, secret)))
        before = secret
        changed.append(proxy.reload(RELOADS + nth + 1))
    print(f"{RELOADS} reloads with one changed agent: {statistics.mean(changed):,.0f} ms of CPU each; resident {proxy.resident_mib():.0f} MiB")


def measure(options, directory, binary):
    proxy_cpu, load_cpu = choose_cpus()
    os.sched_setaffinity(0, {load_cpu})
    sizes = [(1, 1), (1000, 1), (options.agents, 1), (1, options.clients), (options.agents, options.clients)]
    [port] = free_ports(1)
    with Server("the stand-in for WeCom", port, stand_in(directory, port), load_cpu, directory / "wecom.log"):
        with contextlib.ExitStack() as running:
            proxies = [running.enter_context(Proxy(directory, binary, *size, port, proxy_cpu)) for size in sizes]
            measure_large(proxies[2])
            for proxy in proxies:
                if proxy is not proxies[2]:
                    call_each(proxy)
            runs = [[load(proxy) for proxy in proxies] for _ in range(options.rounds)]
        prefix = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={directory}/callgrind.out.%p"]
        counts = []
        for size in sizes:
            with Proxy(directory, binary, *size, port, proxy_cpu, prefix) as proxy:
                counts.append(instructions(proxy))
        print("| | CPU µs a request | ÷ first | instructions | ÷ first |\n|---|--:|--:|--:|--:|")
        for nth, proxy in enumerate(proxies):
            ratio = statistics.median(run[nth] / run[0] for run in runs)
            of = statistics.median(run[nth] for run in runs)
            print(f"| {proxy.name} | {of:.1f} | {ratio:.2f} | {counts[nth]:,.0f} | {counts[nth] / counts[0]:.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--program", type=pathlib.Path, default=REPOSITORY / "target/release/wecom-proxy")
    options = parser.parse_args()
    program("valgrind")
    with tempfile.TemporaryDirectory(prefix="wecom-proxy-many-") as directory:
        measure(options, pathlib.Path(directory), options.program.resolve())


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"bench/many.py: {problem}")
