#!/usr/bin/env python3
"""Resident memory of the proxy for each client connection, by what the connection does.

Usage: python3 bench/memory.py [PROGRAM]
Uses 127.0.0.1 and a temporary directory only. Needs Linux and openssl.
"""

import http.server
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading

CONNECTIONS = 500
KEY = "key-of-billing-0000000000"
GET = f"GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\n\r\n".encode()
RESPONSE = b'{"errcode":0,"errmsg":"ok","access_token":"a-token","expires_in":7200}'
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
HEADERS, CONTINUATION = 1, 9


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(RESPONSE)))
        self.end_headers()
        self.wfile.write(RESPONSE)

    def log_message(self, *_):
        pass


def frame(kind, payload, stream=1):
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + stream.to_bytes(4, "big") + payload


def endless_head(size):
    """The begin of a header block of this size that does not end."""
    chunks = [b"x" * 16000] * (size // 16000) + [b"x" * (size % 16000)]
    return PREFACE + b"".join(frame(CONTINUATION if nth else HEADERS, chunk) for nth, chunk in enumerate(chunks))


def read_response(connection):
    received = b""
    while b"a-token" not in received:
        more = connection.recv(4096)
        assert more, received
        received += more


class Proxy:
    def __init__(self, program, directory, upstream, tls):
        config = directory / "proxy.toml"
        config.write_text(
            f'[server]\nlisten = "127.0.0.1:0"\n{tls}[upstream]\nurl = "http://127.0.0.1:{upstream}"\n'
            '[log]\naccess = false\n[agents.hr]\ncorpid = "ww1"\nsecret = "a-secret-of-hr-00000000"\n'
            f'[clients.billing]\nkey = "{KEY}"\nagents = ["hr"]\n'
        )
        command = [program, "serve", "--config", str(config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        ready = next(line for line in self.process.stderr if "ready" in line)
        self.port = int(re.search(r"127\.0\.0\.1:(\d+)", ready).group(1))
        threading.Thread(target=lambda: [None for _ in self.process.stderr], daemon=True).start()

    def resident_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))


def measure(program, directory, upstream, name, tls, alpn, send, answered):
    tls_line = 'tls = { cert = "cert.pem", key = "key.pem" }\n' if tls else ""
    proxy = Proxy(program, directory, upstream, tls_line)
    context = ssl.create_default_context(cafile=str(directory / "cert.pem"))
    context.set_alpn_protocols([alpn])

    def connect():
        connection = socket.create_connection(("127.0.0.1", proxy.port))
        if tls:
            connection = context.wrap_socket(connection, server_hostname="localhost")
        connection.sendall(send)
        if answered:
            read_response(connection)
        return connection

    try:
        # What the first connections allocate once does not count.
        kept = [connect() for _ in range(20)]
        settle(proxy)
        before = proxy.resident_kib()
        kept += [connect() for _ in range(CONNECTIONS)]
        settle(proxy)
        print(f"{(proxy.resident_kib() - before) / CONNECTIONS:8.2f} KiB  {name}")
    finally:
        proxy.process.terminate()
        proxy.process.wait()
    del kept


def settle(proxy):
    """Waits until the program has used no CPU for a while: it has handled all that was sent."""
    stat = pathlib.Path(f"/proc/{proxy.process.pid}/stat")
    used, still = None, 0
    while still < 5:
        now = stat.read_text().rsplit(")", 1)[1].split()[11:13]
        still = still + 1 if now == used else 0
        used = now
        threading.Event().wait(0.1)


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/wecom-proxy"
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
             "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")],
            check=True, stderr=subprocess.DEVNULL,
        )
        for tls in (False, True):
            suffix = " under TLS" if tls else ""
            for case in (
                ("idle, before a request", "http/1.1", b"", False),
                ("idle, after a request", "http/1.1", GET, True),
                ("HTTP/2, idle, before a request", "h2", PREFACE, False),
                ("HTTP/2 without a key, header block of 31 KiB that does not end", "h2", endless_head(31 << 10), False),
                ("HTTP/2 without a key, header block of 53 KiB that does not end", "h2", endless_head(53 << 10), False),
            ):
                measure(program, directory, upstream.server_address[1], case[0] + suffix, tls, *case[1:])


if __name__ == "__main__":
    main()
