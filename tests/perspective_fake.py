"""A stand-in for the Perspective API on 127.0.0.1, with faults on demand; also a process of its own:

python tests/perspective_fake.py PORT_FILE LOG_FILE '{"faults": {"500": 0.1}, "delay": 0.02}'
"""

import hashlib
import json
import random
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

KEY = "AIza-not-a-real-key-0123456789"
UNSCORABLE = {
    "[long]": "COMMENT_TOO_LONG",
    "[empty]": "COMMENT_EMPTY",
    "[tongue]": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
    "[odd]": "INVALID_ARGUMENT",
}


def true_score(text):
    "The score that the service would give, from the text alone."
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


class Service(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(
        self,
        faults=None,
        delay=0.0,
        slow=1.0,
        seed=0,
        log_path=None,
        ended=False,
        retry_after="0.05",
    ):
        super().__init__(("127.0.0.1", 0), Answer)
        self.faults, self.delay, self.slow = faults or {}, delay, slow
        self.ended, self.retry_after = ended, retry_after
        self.random, self.lock, self.log = random.Random(seed), threading.Lock(), []
        self.file = open(log_path, "a", buffering=1) if log_path else None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def note(self, text, outcome, **more):
        with self.lock:
            self.log.append(dict(at=time.time(), text=text, outcome=outcome, **more))
            if self.file:
                self.file.write(json.dumps(self.log[-1]) + "\n")

    def fault(self):
        with self.lock:
            x = self.random.random()
        for kind, share in self.faults.items():
            if x < share:
                return kind
            x -= share

    def handle_error(self, request, client_address):
        pass  # a client that was killed is no news

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def trickle(self, head):
        "A byte now and then, without end: of the body, or of the headers."
        self.close_connection = True
        self.wfile.write(
            b"HTTP/1.1 200 OK\r\n"
            + (b"X-Long: " if head else b"Content-Type: application/json\r\n\r\n")
        )
        for _ in range(200):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)

    def refuse(self, status, word):
        self.send(
            status,
            {
                "error": {
                    "code": status,
                    "message": f"refused {self.path}",
                    "status": word,
                    "details": [{"errorType": word}],
                }
            },
        )

    def do_POST(self):
        service = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, url = asked["comment"]["text"], urlparse(self.path)
        service.note(
            text,
            "came",
            language=asked["languages"][0],
            stored=not asked.get("doNotStore", False),
            attributes=list(asked["requestedAttributes"]),
        )
        if service.ended or url.path != "/v1alpha1/comments:analyze":
            return self.refuse(404, "NOT_FOUND")
        if parse_qs(url.query).get("key") != [KEY]:
            return self.refuse(400, "API_KEY_INVALID")
        if service.delay:
            time.sleep(service.delay)
        kind = service.fault()
        if kind:
            service.note(text, kind)
        if kind == "slow":
            time.sleep(service.slow)
        elif kind:
            return self.fail(kind, asked)
        self.answer(text, asked, noted=kind != "slow")

    def answer(self, text, asked, noted):
        "A score, or the reason why this text has none."
        for prefix, word in UNSCORABLE.items():
            if text.startswith(prefix):
                self.server.note(text, word)
                return self.refuse(400, word)
        scores = self.scores(asked, true_score(text), type="PROBABILITY")
        self.send(200, dict(attributeScores=scores, languages=asked["languages"]))
        if noted:
            self.server.note(text, "scored")

    def scores(self, asked, value, **more):
        return {
            a: dict(summaryScore=dict(value=value, **more)) for a in asked["requestedAttributes"]
        }

    def fail(self, kind, asked):
        "The answer of a service that is broken in this way."
        page = b"<html>400 Bad Request: " + self.path.encode() + b"</html>"
        busy = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}
        odd = dict(attributeScores=self.scores(asked, 7.0))
        answers = {
            "429": lambda: self.send(429, busy, Retry_After=self.server.retry_after),
            "500": lambda: self.send(500, b"<html>oops " + self.path.encode() + b"</html>"),
            "reset": self.reset,
            "half": self.half,
            "proxy": lambda: self.send(400, page, Content_Type="text/html"),
            "echo": lambda: self.refuse(400, KEY),
            "shout": lambda: self.refuse(400, "THE_KEY_IS_" + KEY.upper()),
            "deep": lambda: self.send(200, b"[" * 200_000),
            "huge": lambda: self.send(200, b" " * (3 << 20)),
            "trickle": lambda: self.trickle(False),
            "slow head": lambda: self.trickle(True),
            "bad json": lambda: self.send(200, b'{"attributeScores": {'),
            "odd score": lambda: self.send(200, odd),
        }
        answers[kind]()

    def reset(self):
        "End the connection at once."
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def half(self):
        "Promise 500 bytes and send six."
        self.send_response(200)
        self.send_header("Content-Length", "500")
        self.end_headers()
        self.wfile.write(b'{"attr')
        self.close_connection = True


if __name__ == "__main__":
    port_file, log_file, options = sys.argv[1:4]
    with Service(log_path=log_file, **json.loads(options)) as running:
        Path(port_file).write_text(running.url)
        time.sleep(3600)
