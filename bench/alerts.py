#!/usr/bin/env python3
"""Runs a real Prometheus with deploy/prometheus/rules.yml beside the proxy and the simulator, and says which alerts fire.

    python3 bench/alerts.py [--minutes 30] [--fault-minutes 10] [PROGRAM]

First steady load, with mistakes of callers in it, on a proxy that counted faults before Prometheus began: no alert may fire. Then
faults, and each has to fire its alert. Exits with 1 otherwise. PROGRAM is by default target/release/wecom-proxy. Needs Debian's
`prometheus` or another one in PATH. All processes end with it.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
REQUESTS_PER_SECOND = 10
# Longer than the proxy's agents stay in trouble, and than the rules look back for new counters.
PAUSE_AFTER_OLD_FAULTS = 330
HR, OPS = "/hr/cgi-bin/user/get?userid=zhangsan", "/ops/cgi-bin/user/get?userid=zhangsan"
UNKNOWN_USER, UNKNOWN_AGENT = "/hr/cgi-bin/user/get?userid=nobody", "/gone/cgi-bin/user/get?userid=zhangsan"
# The alerts that the faults below must fire; others must not.
EXPECTED = {
    "WecomProxyAddressNotTrusted",
    "WecomProxyTooOften",
    "WecomProxyAgentTrouble",
    "WecomProxyRenewalFails",
    "WecomProxyReloadFailed",
    "WecomProxyUpstreamDown",
    "WecomProxyDown",
}
# These follow from the changed secret, and from the tickets that are not pushed meanwhile, earlier or later.
POSSIBLE = {"WecomProxyTokenNotRenewed", "WecomProxyRenewalsHeld", "WecomProxyRefusalsRise", "WecomProxySuiteTicketLate"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def call(port, path, method="GET", body=None, timeout=60):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Load(threading.Thread):
    """A steady rate of requests; of 100, two are for an unknown user and one for an unknown agent."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.sent, self.stopped = port, 0, threading.Event()

    def run(self):
        while not self.stopped.wait(1 / REQUESTS_PER_SECOND):
            self.sent += 1
            nth = self.sent % 100
            path = UNKNOWN_USER if nth in (17, 61) else UNKNOWN_AGENT if nth == 42 else OPS if nth % 3 == 0 else HR
            with contextlib.suppress(OSError, http.client.HTTPException):
                call(self.port, path)


class Setup:
    def __init__(self, stack, program, directory):
        self.stack, self.program, self.directory = stack, program, pathlib.Path(directory)
        self.api, self.control, self.proxy, self.admin, self.prometheus = (free_port() for _ in range(5))

    def spawn(self, *command, **options):
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, **options)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def start_simulator(self):
        addresses = ("--listen", f"127.0.0.1:{self.api}", "--control", f"127.0.0.1:{self.control}")
        command = (self.program, "simulator", *addresses, "--token-lifetime", "10m", "--suite")
        process = self.spawn(*command, stdout=subprocess.PIPE, text=True)
        tables = []
        for line in process.stdout:
            tables.append(line)
            if line.startswith("aes_key"):
                break
        return process, "".join(tables)

    def start_proxy(self, tables):
        state = f'[state]\npath = "state.db"\nkey = "{secrets.token_hex(20)}"\n'
        server = f'[server]\nlisten = "127.0.0.1:{self.proxy}"\n[admin]\nlisten = "127.0.0.1:{self.admin}"\n'
        self.config = self.directory / "proxy.toml"
        self.config.write_text(server + state + "[log]\naccess = false\n" + tables)
        process = self.spawn(self.program, "--config", self.config)
        self.wait_for(self.admin, "/healthz")
        return process

    def start_prometheus(self):
        text = (REPOSITORY / "deploy/prometheus/prometheus.yml").read_text()
        authorization = text[text.index("    # The key of the admin") : text.index("    static_configs")]
        text = text.replace(authorization, "").replace("proxy:9090", f"127.0.0.1:{self.admin}")
        text = text.replace("rules.yml", str(REPOSITORY / "deploy/prometheus/rules.yml"))
        config = self.directory / "prometheus.yml"
        config.write_text(text)
        data, listen = self.directory / "data", f"127.0.0.1:{self.prometheus}"
        paths = (f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address={listen}")
        self.spawn("prometheus", *paths, stdout=subprocess.DEVNULL)
        self.wait_for(self.prometheus, "/-/ready")

    def wait_for(self, port, path):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if call(port, path)[0] == 200:
                    return
            time.sleep(0.2)
        sys.exit(f"nothing answers on port {port}")

    def simulate(self, command, body=None):
        status, text = call(self.control, f"/control/{command}", "POST", body)
        assert status == 200, text

    def push_ticket(self):
        self.simulate("push?callback=crm&event=suite_ticket")

    def alerts(self):
        """The alerts that fire now, with the labels that tell which."""
        alerts = json.loads(call(self.prometheus, "/api/v1/alerts")[1])["data"]["alerts"]
        firing = (alert["labels"] for alert in alerts if alert["state"] == "firing")
        return {labels["alertname"]: {k: v for k, v in labels.items() if k in ("agent", "reason", "suite", "kind")} for labels in firing}

    def watch(self, minutes, seen, label):
        """Notes the alerts that fire, and pushes the suite's ticket as often as WeCom does."""
        began, pushed = time.monotonic(), 0
        while (passed := time.monotonic() - began) < minutes * 60:
            if label == "steady" and passed >= pushed:
                self.push_ticket()
                pushed += 600
            for name, labels in self.alerts().items():
                if name not in seen:
                    seen[name] = passed
                    print(f"{label} +{passed / 60:.1f} min: {name} {labels}", flush=True)
            time.sleep(5)


def inject_address_fault(setup):
    setup.simulate("reset")
    setup.simulate("fail?errcode=60020&agent=hr&count=20&path=/cgi-bin/user/get")


def inject_faults(setup, proxy):
    setup.simulate("fail?errcode=48002&agent=ops&path=/cgi-bin/user/get")
    setup.simulate("secret?agent=hr&secret=" + "changed-" * 4)
    setup.config.write_text(setup.config.read_text() + "\n[nonsense]\n")
    proxy.send_signal(signal.SIGHUP)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--fault-minutes", type=float, default=10)
    parser.add_argument("program", nargs="?", default=REPOSITORY / "target/release/wecom-proxy")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        setup = Setup(stack, os.path.abspath(options.program), stack.enter_context(tempfile.TemporaryDirectory()))
        simulator, tables = setup.start_simulator()
        proxy = setup.start_proxy(tables)
        receiver = {"name": "crm", "url": f"http://127.0.0.1:{setup.proxy}/callbacks/crm", "receive_id": "ww5u1te00000000001"}
        keys = dict(line.split(" = ") for line in tables.splitlines() if line.startswith(("token =", "aes_key =")))
        receiver |= {name: value.strip('"') for name, value in keys.items()}
        setup.simulate("callbacks", json.dumps(receiver))
        setup.push_ticket()
        load = Load(setup.proxy)
        load.start()
        for errcode in (60020, 45009, 48002):
            setup.simulate(f"fail?errcode={errcode}&agent=hr&count=20&path=/cgi-bin/user/get")
        time.sleep(PAUSE_AFTER_OLD_FAULTS if options.minutes >= 10 else 30)
        setup.start_prometheus()
        steady, faulty = {}, {}
        setup.watch(options.minutes, steady, "steady")
        print(f"{load.sent} requests; steady load fired {sorted(steady) or 'nothing'}", flush=True)
        inject_address_fault(setup)
        setup.watch(1, faulty, "address")
        inject_faults(setup, proxy)
        # A trouble fires after 8 minutes.
        setup.watch(options.fault_minutes, faulty, "faults")
        setup.simulate("reset")
        setup.simulate("fail?errcode=45009&agent=ops&count=20&path=/cgi-bin/user/get")
        setup.watch(1, faulty, "quota")
        simulator.kill()
        setup.watch(7, faulty, "no WeCom")
        load.stopped.set()
        proxy.kill()
        setup.watch(4, faulty, "no proxy")
        missing, unexpected = EXPECTED - set(faulty), set(faulty) - EXPECTED - POSSIBLE
        print(f"faults fired {sorted(faulty)}; missing {sorted(missing)}; unexpected {sorted(unexpected)}")
        sys.exit(bool(steady or missing or unexpected))


main()
