#!/usr/bin/env python3
"""Puts rows of a database into a running wecom-proxy as agents, by its admin API.

Reads CSV or tab-separated text with a header line, or JSON lines, from a file or stdin. The columns are the keys of
[agents.NAME] in proxy.toml, and name. The admin key comes from the environment variable ADMIN_KEY.
"""

import argparse
import csv
import http.client
import json
import os
import queue
import sys
import threading
import time
import urllib.parse

# An entry of text from these columns is a number, or yes or no.
NUMBERS = {"agentid"}
FLAGS = {"accept_secret"}
LISTS = {"plain"}


def read_rows(lines):
    """Yields (line, row); a row has its columns as text, or the values of its JSON."""
    first = lines.readline().lstrip("\ufeff")
    if first.lstrip().startswith("{"):
        yield 1, json.loads(first)
        for number, line in enumerate(lines, 2):
            if line.strip():
                yield number, json.loads(line)
        return
    delimiter = "\t" if "\t" in first else ","
    header = next(csv.reader([first], delimiter=delimiter), [])
    header = [column.strip() for column in header]
    reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        if row:
            yield reader.line_num + 1, dict(zip(header, row))


def table_of(row):
    """The name and the table of a row. Empty columns are left out, and so is MySQL's NULL."""
    table = {}
    for key, value in row.items():
        if value is None or value in ("", "NULL"):
            continue
        if isinstance(value, str):
            value = value.strip()
            if key in NUMBERS:
                value = int(value)
            elif key in FLAGS:
                value = value.lower() in ("1", "true", "yes")
            elif key in LISTS:
                value = value.split()
        table[key] = value
    return table.pop("name", ""), table


class Importer:
    def __init__(self, options, key):
        self.url = urllib.parse.urlsplit(options.url)
        self.query = "?" + "&".join(
            name + "=1" for name in ("dry_run", "verify") if getattr(options, name)
        )
        self.headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
        if options.only_new:
            self.headers["If-None-Match"] = "*"
        self.rows = queue.Queue(maxsize=1000)
        self.counts = {"created": 0, "replaced": 0, "left alone": 0, "refused": 0}
        self.lock = threading.Lock()

    def connect(self):
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        return kind(self.url.hostname, self.url.port, timeout=60)

    def work(self):
        connection = self.connect()
        while (item := self.rows.get()) is not None:
            line, row = item
            try:
                result, reason = self.put(connection, row)
            except (OSError, http.client.HTTPException):
                # A PUT may be sent again: the connection had been closed while it was idle, or the proxy restarts.
                connection.close()
                time.sleep(1)
                connection = self.connect()
                try:
                    result, reason = self.put(connection, row)
                except (OSError, http.client.HTTPException) as error:
                    result, reason = "refused", str(error) or type(error).__name__
            with self.lock:
                self.counts[result] += 1
                if result == "refused":
                    print(f"line {line}: {reason}", file=sys.stderr)

    def put(self, connection, row):
        try:
            name, table = table_of(row)
        except ValueError as error:
            return "refused", str(error)
        if not name:
            return "refused", "the column name is empty"
        path = self.url.path.rstrip("/") + "/api/agents/" + urllib.parse.quote(name, safe="") + self.query
        connection.request("PUT", path, json.dumps(table), self.headers)
        response = connection.getresponse()
        body = response.read()
        if response.status == 412:
            return "left alone", None
        if response.status in (200, 201):
            created = response.status == 201 or json.loads(body).get("status") == 201
            return ("created" if created else "replaced"), None
        try:
            reason = json.loads(body)["error"]
        except (ValueError, KeyError):
            reason = f"HTTP {response.status}"
        return "refused", f"{name}: {reason}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="CSV, tab-separated or JSON lines; default: stdin")
    parser.add_argument("--url", default="http://127.0.0.1:9090", help="the admin listener (%(default)s)")
    parser.add_argument("--connections", type=int, default=4, help="kept connections (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only check the rows")
    parser.add_argument("--verify", action="store_true", help="fetch a token for each row first")
    parser.add_argument("--only-new", action="store_true", help="leave existing agents alone")
    options = parser.parse_args()
    key = os.environ.get("ADMIN_KEY")
    if not key:
        parser.error("set ADMIN_KEY to the key whose hash is admin.key_sha256")
    importer = Importer(options, key)
    workers = [threading.Thread(target=importer.work, daemon=True) for _ in range(max(1, options.connections))]
    for worker in workers:
        worker.start()
    lines = open(options.file, encoding="utf-8", newline="") if options.file else sys.stdin
    with lines:
        for item in read_rows(lines):
            importer.rows.put(item)
    for _ in workers:
        importer.rows.put(None)
    for worker in workers:
        worker.join()
    prefix = "checked: " if options.dry_run else ""
    print(prefix + ", ".join(f"{count} {result}" for result, count in importer.counts.items()))
    return 1 if importer.counts["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
