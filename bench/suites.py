#!/usr/bin/env python3
"""Measures a suite with very many corps: import, start, memory, and a cold start under load.

    python3 bench/suites.py [--program PROGRAM] [--corps 10000] [--callers 5] [--connections 2000]

PROGRAM is the built program, by default target/release/wecom-proxy. Each corp is called by several callers at once while the proxy has
no token: WeCom must get one get_suite_token, and one get_corp_token for each corp. Then all tokens of corps end, and in the middle of
the same load the suite's token is voided: one more of each. Exits with 1 if that is not so, or if a call fails.
"""

import argparse
import asyncio
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ADMIN_KEY, KEY = "the-key-of-the-operator-0123456789", "the-key-of-the-crm-app-0123456789"
CALLBACK = {"name": "crm", "token": "token-of-the-demo", "aes_key": "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"}


class Program:
    """A started program, with the lines that it has printed."""

    def __init__(self, *command, stream):
        environment = {**os.environ, "NO_COLOR": "1"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.stream = getattr(self.process, stream)

    def read_until(self, text):
        lines = []
        for line in self.stream:
            lines.append(line)
            if text in line:
                return "".join(lines)
        sys.exit(f"the program ended: {''.join(lines[-5:])}")

    def resident_megabytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait()


def post(url, body=None):
    data = json.dumps(body).encode() if body is not None else b""
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method="POST"), timeout=600) as response:
        return json.loads(response.read())


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Bench:
    def __init__(self, options, directory):
        self.options, self.directory, self.failed = options, directory, False
        self.wecom = Program(
            options.program, "simulator", "--suite", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", stream="stdout"
        )
        printed = self.wecom.read_until("aes_key")
        self.control = re.search(r"curl (http://\S+)/control", printed)[1] + "/control"
        suite = "\n[providers" + printed.split("\n[providers", 1)[1]
        upstream = "[upstream]\n" + re.search(r'url = "\S+"', printed)[0]
        self.config = directory / "proxy.toml"
        self.config.write_text(
            f"""{upstream}
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
key_sha256 = "{sha256(ADMIN_KEY)}"
[log]
access = false
[state]
path = "{directory}/state.db"
key = "the-key-of-the-state-0123456789-0123456789"
[clients.crm-app]
key_sha256 = "{sha256(KEY)}"
agents = ["crm"]
{suite}"""
        )

    def start(self):
        begin = time.monotonic()
        self.proxy = Program(self.options.program, "--config", str(self.config), stream="stderr")
        ready = self.proxy.read_until(" ready ")
        self.seconds_to_ready = time.monotonic() - begin
        self.address, self.admin = (re.search(rf'\b{name}="([^"]+)"', ready)[1] for name in ("listen", "admin"))
        suite_id = re.search(r'suite_id = "([^"]+)"', self.config.read_text())[1]
        post(f"{self.control}/callbacks", {**CALLBACK, "url": f"http://{self.address}/callbacks/crm", "receive_id": suite_id})

    def gettokens(self):
        """The calls for tokens: of the suite, and the least and most of a corp."""
        with urllib.request.urlopen(f"{self.control}/state", timeout=600) as response:
            agents = {agent["name"]: agent["gettokens"] for agent in json.loads(response.read())["agents"]}
        corps = [count for name, count in agents.items() if name.startswith("crm:")]
        return agents["crm"], min(corps), max(corps)

    def expect(self, what, found, wanted):
        good = found == wanted
        self.failed |= not good
        print(f"{what}: {found}" + ("" if good else f", and not {wanted}"))

    async def load(self, middle=None):
        """All callers of all corps, those of one corp after another; `middle` is called when half of them have a response."""
        corps, callers = self.options.corps, self.options.callers
        calls = iter(f"wpCorp{nth // callers + 1}" for nth in range(corps * callers))
        host, port = self.address.rsplit(":", 1)
        times, failures = [], {}

        async def caller():
            reader, writer = await asyncio.open_connection(host, int(port))
            for corpid in calls:
                begin = time.monotonic()
                head = f"GET /crm:{corpid}/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\nHost: proxy\r\nX-Api-Key: {KEY}\r\n\r\n"
                writer.write(head.encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                body = await reader.readexactly(int(re.search(r"(?i)content-length: (\d+)", head)[1]))
                times.append(time.monotonic() - begin)
                if '"errcode":0' not in body.decode():
                    reason = re.sub(r" \(request id.*", "", body.decode())
                    failures[reason] = failures.get(reason, 0) + 1
                if middle and len(times) == corps * callers // 2:
                    await asyncio.to_thread(middle)
            writer.close()

        begin = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(min(self.options.connections, corps * callers))))
        seconds = time.monotonic() - begin
        times.sort()
        p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
        print(f"  {len(times)} calls in {seconds:.1f} s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, slowest {times[-1] * 1000:.0f} ms")
        self.expect("  failed calls", failures, {})

    def run(self):
        corps = self.options.corps
        codes = post(f"{self.control}/corps?suite=crm&count={corps}")["corps"]
        rows = self.directory / "corps.csv"
        lines = (f"crm:{corp['corpid']},{corp['permanent_code']}\n" for corp in codes)
        rows.write_text("name,permanent_code\n" + "".join(lines))
        self.start()
        post(f"{self.control}/push?callback=crm&event=suite_ticket")
        begin = time.monotonic()
        script = [sys.executable, REPOSITORY / "deploy/import-agents.py", "--url", f"http://{self.admin}", rows]
        imported = subprocess.run(script, env={**os.environ, "ADMIN_KEY": ADMIN_KEY}, capture_output=True, text=True, check=False)
        print(f"import: {imported.stdout.strip()} in {time.monotonic() - begin:.1f} s")
        self.proxy.stop()
        self.start()
        size = (self.directory / "state.db").stat().st_size / 1e6
        print(f"start with {corps} corps: ready after {self.seconds_to_ready:.2f} s, {self.proxy.resident_megabytes():.0f} MiB, state {size:.0f} MB")
        print("cold start:")
        asyncio.run(self.load())
        self.expect("  get_suite_token, least and most get_corp_token", self.gettokens(), (1, 1, 1))
        print(f"  {self.proxy.resident_megabytes():.0f} MiB with all tokens")
        for corp in codes:
            post(f"{self.control}/expire?agent=crm:{corp['corpid']}")
        print("all tokens of corps ended, and the suite's is voided in the middle:")
        asyncio.run(self.load(lambda: post(f"{self.control}/revoke?agent=crm")))
        self.expect("  get_suite_token, least and most get_corp_token", self.gettokens(), (2, 2, 2))
        self.proxy.stop()
        self.wecom.stop()
        return 1 if self.failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(REPOSITORY / "target/release/wecom-proxy"))
    parser.add_argument("--corps", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=5)
    parser.add_argument("--connections", type=int, default=2000)
    with tempfile.TemporaryDirectory() as directory:
        return Bench(parser.parse_args(), pathlib.Path(directory)).run()


if __name__ == "__main__":
    sys.exit(main())
