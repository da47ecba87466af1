"""An HTTP proxy that fails on purpose: for tests of what talks to a server."""

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("429", "500", "delay", "cut", "half", "short")


class FaultyProxy(ThreadingHTTPServer):
    """Hands requests on to a server, after failing some of them.

    How often a request fails before it is handed on depends on its body alone, so that no order of requests makes a
    test fail by chance: with probability `share` once more, at most three times. Kinds of faults: 429 with Retry-After,
    500, a delay of `delay` seconds, a connection reset in the middle of the headers, half a JSON body under a length
    that fits it ("half"), and under a length that does not ("short").
    """

    daemon_threads = True

    def __init__(self, upstream: str, share: float = 0.0, delay: float = 0.0, slow: float = 0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.share, self.delay, self.slow = urlsplit(upstream), share, delay, slow
        self.lock, self.attempts = threading.Lock(), Counter()
        self.failed, self.answered = (
            Counter(),
            [],
        )  # faults by kind; the last message of each request that was handed on
        self.always = None  # status and body that every request gets from now on
        self.url = f"http://127.0.0.1:{self.server_port}{self.upstream.path}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self, body: bytes) -> str | None:
        """What happens to this request, if anything."""
        chance = random.Random(body)
        faults = [chance.choice(FAULTS) for _ in range(3) if chance.random() < self.share]
        with self.lock:
            self.attempts[body] += 1
            kind = faults[self.attempts[body] - 1] if self.attempts[body] <= len(faults) else None
            self.failed[kind] += kind is not None
        return kind

    def handle_error(self, request, client_address):
        """A client that leaves early is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.always:
            status, text = self.server.always
            return self.reply(status, text.replace("{authorization}", self.headers["Authorization"]).encode())
        kind = self.server.fault(body)
        if kind == "delay":
            time.sleep(self.server.delay)
            return self.close()
        if kind in ("429", "500"):
            return self.reply(
                int(kind), b'{"error": {"message": "not now"}}', {"Retry-After": "1"} if kind == "429" else {}
            )
        if kind == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: appl")
            return self.close()
        time.sleep(self.server.slow)
        status, data = self.forward(body)
        if kind:
            return self.reply(
                status,
                data[: len(data) // 2],
                {"Content-Length": str(len(data) if kind == "short" else len(data) // 2)},
            )
        if status == 200:
            with self.server.lock:
                self.server.answered.append(json.loads(body)["messages"][-1]["content"])
        self.reply(status, data)

    def forward(self, body: bytes) -> tuple[int, bytes]:
        connection = HTTPConnection(self.server.upstream.hostname, self.server.upstream.port, timeout=120)
        connection.request("POST", self.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    def reply(self, status: int, data: bytes, headers: dict | None = None):
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def close(self):
        """Reset the connection, as a dying router does."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *args):
        """Quiet."""
