"""One request to an OpenAI-compatible server: POST {url}/chat/completions or {url}/completions,
with a hard time limit.

The key comes from the environment alone, LIFTCORE_QA_KEY or else OPENAI_API_KEY. It goes into one
header and nowhere else: no message, repr, log or file holds it, and no redirect is followed.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
from email.message import Message
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from liftcore.errors import LiftError, UsageError

KEYS = ("LIFTCORE_QA_KEY", "OPENAI_API_KEY")
LARGEST = 2**20  # bytes of an answer; those wanted have some thousands


class ServerError(LiftError):
    """A request failed.

    reason   short, without what changes from request to request, so that it can be counted
    retry    whether the same request may succeed later
    after    seconds that the server asks to wait, or None
    silent   no answer came, not even a refusal; denied: the server wants no such request from us
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        retry: bool = True,
        after: float | None = None,
        silent: bool = False,
        denied: bool = False,
    ):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.retry, self.after = reason, retry, after
        self.silent, self.denied = silent, denied


class _Key:
    """A key that no repr shows."""

    def __init__(self):
        # An empty first one says that there is none, whatever the other holds for other servers.
        self.value = next((os.environ[name] for name in KEYS if name in os.environ), "").strip()
        if any(not "!" <= c <= "~" for c in self.value):
            raise UsageError("the server's key in the environment holds spaces or odd characters")

    def __repr__(self) -> str:
        return "<key>"

    def hidden(self, text: str) -> str:
        return text.replace(self.value, "***") if self.value else text


class ChatServer:
    """A server and the model to ask there. Threads may share it.

    Optional parameters that a server refuses (response_format, temperature) are left out from
    then on; max_tokens becomes max_completion_tokens.
    """

    ENDPOINT = "/chat/completions"

    def __init__(self, url: str, model: str, *, temperature: float, max_tokens: int):
        parts = urlsplit(url.strip().rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"not the address of a server: {url!r}; http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise UsageError(f"no key in the address, please: put it into {KEYS[0]}")
        if not model:
            raise UsageError("a server needs the name of a model")
        path = parts.path.removesuffix(self.ENDPOINT) + self.ENDPOINT
        self.path = f"{path}?{parts.query}" if parts.query else path
        self.secure, self.host = parts.scheme == "https", parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        self.model = model
        self.requests = 0
        self._optional = {
            "response_format": {"type": "json_object"},
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        self._key, self._proxy = _Key(), _proxy(parts.scheme, self.host)
        self._tls = ssl.create_default_context() if self.secure else None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.host}:{self.port}, {self.model})"

    def ask(self, messages: list[dict[str, str]], timeout: float) -> str:
        """The model's answer to a chat, messages of role and content. Raises ServerError."""
        return _content(self._answer({"messages": messages}, timeout))

    def _answer(self, asked: dict, timeout: float) -> bytes:
        """The body of the answer to a request."""
        while True:
            with self._lock:
                optional = dict(self._optional)
            status, headers, body = self._post({"model": self.model, **asked, **optional}, timeout)
            if status == 200:
                return body
            said = self._key.hidden(_message(body))
            if status not in (400, 422) or not self._simpler(optional, said):
                raise _refusal(status, headers, said)

    def close(self) -> None:
        """Cuts all requests that are under way; later ones fail at once."""
        with self._lock:
            self._closed = True
            sockets = list(self._sockets)
        for each in sockets:
            _cut(each)

    def _simpler(self, sent: dict, said: str) -> bool:
        """Whether to try again without what the server refused."""
        named = next((name for name in sent if name in said), None)
        name = named or ("response_format" if "response_format" in sent else None)
        if name is None or name == "max_completion_tokens":
            return False
        with self._lock:
            value = self._optional.pop(name, None)  # None: another thread was first
            if name == "max_tokens" and value is not None:
                self._optional["max_completion_tokens"] = value
        return True

    def _post(self, content: dict, timeout: float) -> tuple[int, Message, bytes]:
        """(status, headers, body) of one POST, all within `timeout` seconds."""
        connection, path, headers = self._connection(timeout)
        headers |= {
            "Content-Type": "application/json",
            "User-Agent": "liftcore",
            "Connection": "close",
        }
        expired = threading.Event()
        own = None

        def expire() -> None:
            expired.set()
            if own is not None:
                _cut(own)

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            own = connection.sock
            with self._lock:
                self._sockets.add(own)
                self.requests += 1
            if self._closed or expired.is_set():
                raise TimeoutError
            connection.putrequest("POST", path, skip_accept_encoding=True)
            body = json.dumps(content).encode()
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                connection.putheader(name, value)
            if self._key.value:
                connection.putheader("Authorization", f"Bearer {self._key.value}")
            connection.endheaders(body)
            response = connection.getresponse()
            answer = response.read(LARGEST + 1)
            if len(answer) > LARGEST:
                raise ServerError("answer too long", f"more than {LARGEST // 2**20} MiB")
            if response.length:
                raise http.client.IncompleteRead(b"")
            return response.status, response.headers, answer
        except ServerError:
            raise
        except Exception as error:
            # Nothing of the original may follow: its frames hold the headers.
            raise self._failure(error, expired.is_set(), timeout) from None
        finally:
            timer.cancel()
            connection.close()
            with self._lock:
                self._sockets.discard(own)

    def _connection(self, timeout: float) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """(connection, path, headers) of a request, through the environment's proxy if any."""
        host, port = self._proxy[:2] if self._proxy else (self.host, self.port)
        if not self.secure:
            plain = http.client.HTTPConnection(host, port, timeout=timeout)
            if not self._proxy:
                return plain, self.path, {}
            netloc = f"[{self.host}]" if ":" in self.host else self.host
            return plain, f"http://{netloc}:{self.port}{self.path}", dict(self._proxy[2])
        secure = http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        if self._proxy:
            secure.set_tunnel(self.host, self.port, self._proxy[2])
        return secure, self.path, {}

    def _failure(self, error: Exception, expired: bool, timeout: float) -> ServerError:
        if self._closed:
            return ServerError("closed", retry=False)
        if expired or isinstance(error, TimeoutError):
            return ServerError("time-out", f"no answer within {timeout:g} s", silent=True)
        if isinstance(error, ssl.SSLCertVerificationError):
            return ServerError("certificate not trusted", self.host, retry=False, denied=True)
        if isinstance(error, ConnectionRefusedError):
            return ServerError("connection refused", f"{self.host}:{self.port}", silent=True)
        if isinstance(error, socket.gaierror):
            return ServerError("unknown host", self.host, silent=True)
        if isinstance(error, (OSError, http.client.HTTPException, ValueError, AttributeError)):
            return ServerError("connection lost", type(error).__name__, silent=True)
        return ServerError("request failed", type(error).__name__, retry=False)


class TextServer(ChatServer):
    """The same for a server that goes on with a text, greedily."""

    ENDPOINT = "/completions"

    def __init__(self, url: str, model: str, *, max_tokens: int):
        super().__init__(url, model, temperature=0.0, max_tokens=max_tokens)
        self._optional = {"max_tokens": max_tokens}
        self._takes_ids = True

    def complete(self, ids: list[int], text: str, timeout: float) -> str:
        """How the model goes on behind a prompt, given as its token ids or, to a server that takes
        none, as its text. Raises ServerError."""
        if self._takes_ids:
            try:
                return self._completed(ids, timeout)
            except ServerError as error:
                if error.reason not in ("HTTP 400", "HTTP 422", "HTTP 500"):
                    raise
                self._takes_ids = False
        return self._completed(text, timeout)

    def _completed(self, prompt: list[int] | str, timeout: float) -> str:
        # Not optional: an answer that was drawn at random says nothing.
        return _completion(self._answer({"prompt": prompt, "temperature": 0.0}, timeout))


def _cut(each: socket.socket) -> None:
    """Ends a connection under another thread's hands; that thread's read or write then fails."""
    with contextlib.suppress(OSError, ValueError):
        # Not SSLSocket.shutdown, which takes the TLS state away while it is in use.
        socket.socket.shutdown(each, socket.SHUT_RDWR)


def _proxy(scheme: str, host: str) -> tuple[str, int, dict[str, str]] | None:
    """(host, port, headers) of the environment's proxy; never for this machine itself."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return None
    proxy = getproxies().get(scheme)
    if not proxy or host == "localhost" or proxy_bypass(host):
        return None
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"the {scheme} proxy of the environment is not an http:// address")
    headers = {}
    if parts.username:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    return parts.hostname, parts.port or 8080, headers


def _content(body: bytes) -> str:
    """The text of a chat completion."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ServerError("not a chat completion") from None
    if isinstance(content, list):
        content = "".join(p.get("text") or "" for p in content if isinstance(p, dict))
    if not isinstance(content, str) or not content.strip():
        raise ServerError("empty answer")
    return content


def _completion(body: bytes) -> str:
    """The text of a completion, which may be empty."""
    try:
        text = json.loads(body)["choices"][0]["text"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ServerError("not a completion") from None
    if not isinstance(text, str):
        raise ServerError("not a completion")
    return text


def _message(body: bytes) -> str:
    """What a server says about an error: OpenAI's form, FastAPI's, or the text itself."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(text)
        if isinstance(said, dict):
            said = said.get("error") or said.get("detail") or said.get("message") or text
        if isinstance(said, dict):
            said = said.get("message") or text
        text = said if isinstance(said, str) else json.dumps(said)
    return " ".join(text.split())


def _refusal(status: int, headers: Message, said: str) -> ServerError:
    retry = status in (408, 409, 425, 429) or status >= 500
    after = _seconds(headers.get("Retry-After")) if status in (429, 503) else None
    denied = status in (401, 403, 404, 405) or 300 <= status < 400
    return ServerError(f"HTTP {status}", said[:200], retry=retry, after=after, denied=denied)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds, given as a number or as a date."""
    if not header:
        return None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if header.strip().replace(".", "", 1).isdigit():
            return float(header)
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None
