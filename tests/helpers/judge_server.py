"""Fake of an OpenAI-compatible endpoint, which can rate, wait, fail, reject and send malformed replies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeServer:
    """Records the requests. Each request gets the next behaviour; the last behaviour repeats."""

    def __init__(self, *behaviours: str | float) -> None:
        self.behaviours = list(behaviours)
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.url = ""
        self._lock = threading.Lock()

    def next(self, body: dict, headers: dict) -> str | float:
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)
            return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]


def reply(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def judge_server(*behaviours: str | float) -> Iterator[JudgeServer]:
    judge = JudgeServer(*behaviours)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behaviour = judge.next({**body, "path": self.path}, dict(self.headers))
            if isinstance(behaviour, int | float):
                return self.send(200, reply(f"It will do.\n\nRating: [[{behaviour}]]"))
            if behaviour == "slow":
                time.sleep(1.5)
                return self.send(200, reply("Rating: [[1]]"))
            if behaviour == "limited":
                return self.send(429, b'{"error": {"message": "too fast"}}', headers={"Retry-After": "0.05"})
            if behaviour == "broken":
                return self.send(500, b"oops")
            if behaviour == "denied":
                return self.send(401, b'{"error": {"message": "bad key"}}')
            if behaviour == "elsewhere":
                return self.send(302, b"", headers={"Location": "http://127.0.0.1:9/"})
            if behaviour == "dropped":
                return self.connection.close()
            if behaviour == "garbage":
                return self.send(200, b"<html>hello</html>")
            if behaviour == "drip":  # a byte now and then, so that no single wait is long
                return self.send(200, *[b" "] * 100)
            if behaviour == "drip headers":
                return self.drip_headers()
            if behaviour == "drip error":
                return self.send(500, *[b"x"] * 100)
            if behaviour == "endless":
                return self.send(200, *[b" " * 2**20] * 64, pause=0.0)
            if behaviour == "deep":
                return self.send(200, b"[" * 200_000)
            if behaviour == "echo denied":
                return self.send(401, json.dumps({"error": f"no: {self.headers['Authorization']}"}).encode())
            if behaviour == "echo broken":
                return self.send(500, f"oops {self.headers['Authorization']}\x1b[31m".encode())
            if behaviour == "echo rating":
                return self.send(200, reply(f"You sent {self.headers['Authorization']}. Rating: [[7]]"))
            if behaviour == "empty":
                return self.send(200, b'{"choices": []}')
            return self.send(200, reply(behaviour))

        def send(self, status: int, *parts: bytes, headers: dict | None = None, pause: float = 0.1) -> None:
            try:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(sum(map(len, parts))))
                self.end_headers()
                for part in parts:
                    self.wfile.write(part)
                    self.wfile.flush()
                    time.sleep(pause if len(parts) > 1 else 0.0)
            except OSError:
                return  # the client has closed the connection

        def drip_headers(self) -> None:
            try:
                for byte in b"HTTP/1.0 200 OK\r\nX-Slow: " + b"x" * 100:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.1)
            except OSError:
                return  # the client has closed the connection

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
