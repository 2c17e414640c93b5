#!/usr/bin/env python3
"""Resident memory of the proxy for each client connection, by what the connection does.

Usage: python3 bench/memory.py [PROGRAM [CASES_WITH_THIS_TEXT]]
       python3 bench/memory.py PROGRAM uploads [CONNECTIONS BODY_BYTES PART_BYTES]
The second one measures slow uploads, as many as the limit of open files allows. Uses 127.0.0.1 and a temporary directory
only. Needs Linux and openssl.
"""

import asyncio
import http.server
import multiprocessing
import pathlib
import re
import resource
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading

CONNECTIONS = 400
KEY = "key-of-billing-0000000000"
GET = f"GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\n\r\n".encode()
REFUSED = b"GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n"
RESPONSE = b'{"errcode":0,"errmsg":"ok","access_token":"a-token","expires_in":7200}'
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
# With an initial window of 0, so that no response body can be sent.
CLOSED_PREFACE = PREFACE[:24] + b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0"
DATA, HEADERS, SETTINGS, CONTINUATION, UNKNOWN = 0, 1, 4, 9, 0x77
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
# Offset of tcpi_bytes_sent in Linux's struct tcp_info.
BYTES_SENT_OFFSET = 200


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


def frame(kind, payload, stream=1, flags=0):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def string(text):
    """A string of HPACK (RFC 7541), without Huffman coding."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, length = len(text) - 127, b"\x7f"
    while rest >= 128:
        length, rest = length + bytes([rest % 128 | 128]), rest // 128
    return length + bytes([rest]) + text


def head(method, *extra):
    """A header block without a key."""
    headers = [(b":method", method), (b":scheme", b"http"), (b":path", b"/hr/cgi-bin/user/get"), (b":authority", b"x"), *extra]
    return b"".join(b"\0" + string(name) + string(value) for name, value in headers)


def refused(count, method=b"GET"):
    """Requests that are refused, on streams 1, 3 and so on."""
    flags = END_HEADERS if method == b"POST" else END_HEADERS | END_STREAM
    return b"".join(frame(HEADERS, head(method), 2 * nth + 1, flags) for nth in range(count))


def refused_with_large_header(count):
    """The same with a request id and with a header of 3,600 bytes that HPACK repeats by its index."""
    block = head(b"GET", (b"x-request-id", b"abc"))
    large = b"\x40" + string(b"x-a") + string(b"a" * 3600)
    blocks = [block + (b"\xbe" if nth else large) + b"\xbe" * 15 for nth in range(count)]
    return b"".join(frame(HEADERS, block, 2 * nth + 1, END_HEADERS | END_STREAM) for nth, block in enumerate(blocks))


def endless_head(size, stream=1):
    """The begin of a header block of this size that does not end."""
    block = head(b"GET", (b"x-large", b"y" * size))[:size]
    chunks = [block[at : at + 16000] for at in range(0, size, 16000)]
    return b"".join(frame(CONTINUATION if nth else HEADERS, chunk, stream) for nth, chunk in enumerate(chunks))


def after_large_headers(sent):
    """The same after 39 requests that are refused and fill HPACK's table."""
    return refused_with_large_header(39) + sent


def incomplete_data(flags=0):
    """A request with a body, and 15 KB of a DATA frame of 16 KB."""
    return frame(HEADERS, head(b"POST"), 79, END_HEADERS) + frame(DATA, b"d" * 16_000, 79, flags)[:15_000]


def read_response(connection):
    received = b""
    while b"a-token" not in received:
        more = connection.recv(4096)
        assert more, received
        received += more


class Proxy:
    def __init__(self, program, directory, upstream, settings, of_upstream=""):
        config = directory / "proxy.toml"
        config.write_text(
            f'[server]\nlisten = "127.0.0.1:0"\n{settings}[upstream]\nurl = "http://127.0.0.1:{upstream}"\n{of_upstream}'
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


def send_incomplete_record(address, context, send):
    """A TLS connection on which the last byte of the last record is not sent; each item of the list is a record or more."""
    connection = socket.create_connection(address)
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(received, to_send, server_hostname="localhost")
    while True:
        try:
            session.do_handshake()
            break
        except ssl.SSLWantReadError:
            connection.sendall(to_send.read())
            received.write(connection.recv(65_536))
    for part in send:
        session.write(part)
    connection.sendall(to_send.read()[:-1])
    return connection


def measure(program, directory, upstream, name, tls, alpn, send, answered):
    tls_line = 'tls = { cert = "cert.pem", key = "key.pem" }\n' if tls else ""
    proxy = Proxy(program, directory, upstream, tls_line)
    context = ssl.create_default_context(cafile=str(directory / "cert.pem"))
    context.set_alpn_protocols([alpn])

    def connect():
        if isinstance(send, list):
            return send_incomplete_record(("127.0.0.1", proxy.port), context, send)
        connection = socket.create_connection(("127.0.0.1", proxy.port))
        if tls:
            connection = context.wrap_socket(connection, server_hostname="localhost")
        connection.settimeout(2)
        try:
            connection.sendall(send)
        except OSError:
            pass  # The proxy has closed it.
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
        used = (proxy.resident_kib() - before) / CONNECTIONS
        sent = bytes_sent(kept[-1])
        print(f"{used:8.2f} KiB  {sent:6} bytes sent  {used * 1024 / max(sent, 1):6.1f} times  {name}", flush=True)
    finally:
        proxy.process.terminate()
        proxy.process.wait()
    del kept


def bytes_sent(connection):
    """Bytes that this side has sent over TCP, the TLS handshake included."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_SENT_OFFSET + 8)
    return struct.unpack_from("Q", info, BYTES_SENT_OFFSET)[0]


def settle(proxy):
    """Waits until the program has used no CPU for a while: it has handled all that was sent."""
    stat = pathlib.Path(f"/proc/{proxy.process.pid}/stat")
    used, still = None, 0
    while still < 5:
        now = stat.read_text().rsplit(")", 1)[1].split()[11:13]
        still = still + 1 if now == used else 0
        used = now
        threading.Event().wait(0.1)


def receive_uploads(port):
    """An upstream that responds when it has the whole body; for a process of its own, because of the open files."""
    async def respond(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                begin = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(RESPONSE)}\r\n\r\n"
                writer.write(begin.encode() + RESPONSE)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve():
        server = await asyncio.start_server(respond, "127.0.0.1", 0, backlog=4096)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def measure_uploads(program, directory, connections=9900, size=20_000, part=2_000):
    """Uploads of messages of which the last part is still to come; the proxy's replay.memory is the default."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    connections = min(connections, (limit - 200) // 2)
    port, sender = multiprocessing.Pipe()
    upstream = multiprocessing.Process(target=receive_uploads, args=[sender], daemon=True)
    upstream.start()
    proxy = Proxy(program, directory, port.recv(), "max_connections = 20000\n", "max_in_flight = 30000\n")
    head = f"POST /hr/cgi-bin/message/send HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\nContent-Length: {size}\r\n\r\n"
    body = b'{"touser":"zhangsan","text":{"content":"'.ljust(size, b"x")
    try:
        before, kept, most = proxy.resident_kib(), [], 0
        for begin in range(0, size - part, part):
            for nth in range(connections):
                if not begin:
                    kept.append(socket.create_connection(("127.0.0.1", proxy.port)))
                    kept[nth].sendall(head.encode())
                kept[nth].sendall(body[begin : begin + part])
            settle(proxy)
            most = max(most, proxy.resident_kib() - before)
        for connection in kept:
            connection.sendall(body[begin + part :])
        for connection in kept:
            read_response(connection)
        bodies, own = (begin + part) / 1024, (most - 256 * 1024) / connections
        print(f"{connections:,} uploads of {size:,} bytes, {bodies:.1f} KiB of each there: {most / 1024:.0f} MiB, "
              f"{most / connections:.1f} KiB each, {own:.1f} KiB each beyond the 256 MiB of replay.memory")
    finally:
        proxy.process.terminate()
        proxy.process.wait()
        upstream.terminate()


# What a client without a key sends, whose window is closed. The short head is :method GET, :scheme http and :path /.
TINY_HEAD = b"\x82\x86\x84"
KEYLESS = (
    ("1 refused request of 3 bytes", frame(HEADERS, TINY_HEAD, 1, END_HEADERS | END_STREAM)),
    ("8 refused requests of 3 bytes",
     b"".join(frame(HEADERS, TINY_HEAD, 2 * nth + 1, END_HEADERS | END_STREAM) for nth in range(8))),
    ("8 refused requests", refused(8)),
    ("250 refused requests", refused(250)),
    ("250 refused requests with a large header", refused_with_large_header(250)),
    ("250 refused requests with bodies to come", refused(250, b"POST")),
    ("header block of 31 KiB that does not end", endless_head(31 << 10)),
    ("header block of 53 KB that does not end", endless_head(53_000)),
    ("header block of 64.5 KB that does not end", endless_head(64_500)),
    ("8 refused requests, then such a header block of 53 KB", refused(8) + endless_head(53_000, 17)),
    ("40 refused requests, then such a header block of 53 KB", refused(40) + endless_head(53_000, 81)),
    ("8 refused requests with a large header, then such a header block of 53 KB",
     refused_with_large_header(8) + endless_head(53_000, 17)),
    ("39 refused requests with a large header, then such a header block of 11 KB",
     refused_with_large_header(39) + endless_head(11_000, 79)),
    ("PING, then such a header block of 53 KB", frame(6, bytes(8), 0) + endless_head(53_000)),
    ("39 refused requests with a large header, then 15 KB of a DATA frame", after_large_headers(incomplete_data())),
    ("39 refused requests with a large header, then 15 KB of a padded DATA frame", after_large_headers(incomplete_data(PADDED))),
    ("39 refused requests with a large header, then 15 KB of an unknown frame",
     after_large_headers(frame(UNKNOWN, b"u" * 16_000, 0)[:15_000])),
    ("39 refused requests with a large header, then 15 KB of SETTINGS",
     after_large_headers(frame(SETTINGS, b"\0\5\0\0\x40\0" * 2600, 0)[:15_000])),
)
# Each item of a list is a TLS record; the last lacks its last byte.
KEYLESS_RECORDS = (
    ("8 refused requests, then a record of 16 KB", [refused(8), endless_head(20_000, 17)[:16_000]]),
    ("39 refused requests with a large header, then a record of 16 KB",
     [after_large_headers(b""), endless_head(20_000, 79)[:16_000]]),
    ("39 refused requests with a large header, 3 KB of a header block, then a record of 12 KB of it",
     [after_large_headers(b""), endless_head(30_000, 79)[:3_000], endless_head(30_000, 79)[3_000:15_000]]),
    ("39 refused requests with a large header, then 15 records of a header block",
     [after_large_headers(b""), *(endless_head(30_000, 79)[at : at + 1000] for at in range(0, 15_000, 1000))]),
)
KEYLESS_HTTP1 = (
    ("1 refused request", REFUSED),
    ("2,000 refused requests", REFUSED * 2000),
    ("head of 63 KB that does not end", REFUSED[:-2] + b"X-Large: " + b"y" * 63_000),
    ("refused request and a head of 63 KB that does not end", REFUSED + REFUSED[:-2] + b"X-Large: " + b"y" * 63_000),
    ("body of 1 MB of which 60 KB come",
     b"POST /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"y" * 60_000),
)


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/wecom-proxy"
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        if wanted == "uploads":
            return measure_uploads(program, directory, *map(int, sys.argv[3:]))
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
                *((f"HTTP/1 without a key, {name}", "http/1.1", sent, False) for name, sent in KEYLESS_HTTP1),
                *((f"HTTP/2 without a key, {name}", "h2", CLOSED_PREFACE + sent, False) for name, sent in KEYLESS),
                *((f"HTTP/2 without a key, {name}, incomplete", "h2", [CLOSED_PREFACE, *sent], False)
                  for name, sent in KEYLESS_RECORDS if tls),
            ):
                if wanted in case[0] + suffix:
                    measure(program, directory, upstream.server_address[1], case[0] + suffix, tls, *case[1:])


if __name__ == "__main__":
    main()
