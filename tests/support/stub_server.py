"""A small OpenAI-compatible server on loopback that behaves as badly as a test asks for."""

import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from liftcore.questions.server import ServerPairs

TEXT = " ".join(f"Sentence {n} tells of ship {n} in the harbour." for n in range(12))
QUICK = {"backoff": 0.01, "timeout": 5.0}


def sentence_of(request):
    prompt = request["messages"][-1]["content"]
    return re.search(r"<sentence>\n(.*)\n</sentence>", prompt, re.DOTALL)[1]


def good(sentence):
    """A valid answer for a sentence."""
    pair = {"question": f"What of: {sentence}?", "answer": "Yes.", "evidence": sentence[:30]}
    return json.dumps({"pairs": [pair]})


class Stub:
    """`behave(n, request, count)` says what request number n gets, the `count`-th for its
    sentence: an answer's text, (status, body, headers), "hang", "cut", "drip" or "drop"."""

    def __init__(self, behave=lambda n, request, count: good(sentence_of(request))):
        self.behave, self.requests, self.headers, self.times = behave, [], [], []
        self.counts, self.busy, self.most_busy = Counter(), 0, 0
        self.lock, self.free = threading.Lock(), threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                stub.serve(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size, daemon_threads = 256, True

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()

    def serve(self, handler):
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        sentence = sentence_of(request)
        with self.lock:
            n = len(self.requests)
            self.requests.append(request)
            self.headers.append((handler.path, dict(handler.headers)))
            self.times.append(time.monotonic())
            self.counts[sentence] += 1
            count = self.counts[sentence]
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            self.reply(handler, self.behave(n, request, count))
        finally:
            with self.lock:
                self.busy -= 1

    def reply(self, handler, what):
        if what == "hang":
            self.free.wait(30)
        elif what == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(what, tuple):
            status, body, headers = what
            self.send(handler, status, body.encode(), headers)
        else:
            text = good("x") if what in ("cut", "drip") else what
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
            self.send(handler, 200, body.encode(), {}, what)

    def send(self, handler, status, body, headers, how=""):
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if how == "drip":
            # A byte now and then: each read comes in time, the whole never does.
            with contextlib.suppress(OSError):
                for i in range(len(body)):
                    if self.free.wait(0.05):
                        return
                    handler.wfile.write(body[i : i + 1])
                    handler.wfile.flush()
        else:
            handler.wfile.write(body[: len(body) // 2] if how == "cut" else body)
        if how == "cut":
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.free.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def start(stub, text=TEXT, **settings):
    return ServerPairs(text, "The Book", stub.url, "m", **{**QUICK, **settings})


def collect(source, seconds=30):
    """All pairs, polled as training would."""
    pairs, until = [], time.monotonic() + seconds
    while not source.done:
        assert time.monotonic() < until, source.summary()
        pairs += source.poll()
        time.sleep(0.005)
    found = source.summary()
    assert found["answered"] + found["failed"] == found["windows"] and not found["open"]
    assert sum(source.failures.values()) == found["failed"]
    assert source.expected == len(pairs) == found["pairs"]
    return pairs


def number(request):
    return int(sentence_of(request).split()[1])
