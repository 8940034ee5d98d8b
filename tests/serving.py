"""A live `minibark serve`, and what tests send to it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Server:
    """A running server.

    Attributes:
        process: it.
        port: of 127.0.0.1.
        key: what `/v1/` asks for, or "".
        said: the lines that it has written.
    """

    process: subprocess.Popen[str]
    key: str = ""
    port: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: object = None, **headers: str):
        """Status, headers and body of an answer; a body that is no bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def speak(self, body: object, **headers: str):
        return self.ask("POST", "/v1/audio/speech", body, **headers)

    def error(self, body: object, **headers: str) -> tuple[int, dict]:
        """Status and error of a request that must be refused."""
        status, _, content = self.speak(body, **headers)
        assert status != 200
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return status, error

    def stats(self) -> dict:
        return json.loads(self.ask("GET", "/stats")[2])

    def open(self, body: bytes, more: str = "") -> socket.socket:
        """A connection on which a speech request has been sent and nothing read."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = (
            "POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: application/json\r\n"
            f"Authorization: Bearer {self.key}\r\n{more or f'Content-Length: {len(body)}'}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return connection

    def until(self, holds, seconds: float = 30) -> dict:
        """The stats once something holds of them."""
        end = time.monotonic() + seconds
        while not holds(stats := self.stats()):
            assert time.monotonic() < end, stats
            time.sleep(0.02)
        return stats

    def end(self) -> int:
        """Let it end; its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(*options: str, key: str = "", model: str = "tiny") -> Iterator[Server]:
    """A server that is ready, in a process of its own."""
    command = [sys.executable, "-m", "minibark", "serve", "--model", model, "--port", "0"]
    environment = os.environ | ({"MINIBARK_API_KEY": key} if key else {})
    process = subprocess.Popen(
        [*command, *options], env=environment, stderr=subprocess.PIPE, text=True
    )
    server = Server(process, key)
    ready = threading.Event()

    def read() -> None:
        for line in process.stderr:
            server.said.append(line.rstrip("\n"))
            if found := re.search(r"listens on http://\S+:(\d+)/", line):
                server.port = int(found[1])
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(120) and server.port, server.said
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
