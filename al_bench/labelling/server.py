"""The server behind the page of al-bench label. It answers this machine alone, and only who knows its address.

The address holds a random token, so no other user and no other web page can guess it. The Host header is checked,
because a foreign name may be made to point to this machine (DNS rebinding), and the Origin of each post, because any
web page can send one. Images are asked for by their number in the list, so no request names a file.
"""

import json
import logging
import secrets
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path
from typing import Any

from al_bench.errors import UserError
from al_bench.labelling.answering import POSTS, Answering, Contradiction
from al_bench.labelling.displayed import Display
from al_bench.labelling.session import Session

log = logging.getLogger("al_bench")

ADDRESS = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
LONGEST = 1 << 16  # bytes of a request's body
POLICY = (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
    "script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A request that is not answered: (status, why)."""


class Server(ThreadingHTTPServer):
    """Each request has a thread of its own."""

    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, session: Session, port: int = 0) -> None:
        """port: 0 lets the system choose one. Raises UserError if it is in use."""
        self.answering, self.display, self.token = Answering(session), Display(), secrets.token_urlsafe(16)
        self.connections: set[socket.socket] = set()
        self.page = PAGE.read_text(encoding="utf-8")
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"Port {port} of {ADDRESS} cannot be used ({error}). Choose another one: --port.") from None

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the network for the name of this machine
        self.hosts = {f"{name}:{self.port}" for name in (ADDRESS, "localhost")}

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in [*self.connections]:  # browsers keep some open, and no answer may come after the session
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # keeps connections open
    disable_nagle_algorithm, wbufsize = True, -1
    server_version, sys_version = "al_bench", ""

    def do_GET(self) -> None:
        with self._answered():
            name = self._asked_for()
            if name == "":
                nonce = secrets.token_urlsafe(16)
                page = self.server.page.replace("{{nonce}}", nonce)
                self._send(page.encode(), "text/html; charset=utf-8", policy=POLICY.format(nonce=nonce))
            elif name == "state":
                self._send_json(self.server.answering.state())
            elif name.startswith("image/"):
                image = self.server.display.of(self.server.answering.file(name.removeprefix("image/")))
                self._send(image.content, image.kind)
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "There is nothing of this name.")

    def do_POST(self) -> None:
        with self._answered():
            name = self._asked_for()
            if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
                raise Refused(HTTPStatus.FORBIDDEN, "Only the page itself may send answers.")
            if name not in POSTS:
                raise Refused(HTTPStatus.NOT_FOUND, "There is nothing of this name.")
            try:
                asked = signature(POSTS[name]).bind(self.server.answering, **self._content())
            except TypeError as error:
                raise Refused(HTTPStatus.BAD_REQUEST, f"{name}: {error}") from None
            self._send_json(POSTS[name](*asked.args, **asked.kwargs))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are no news."""

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Send what is raised as an error of HTTP, with its words in JSON."""
        try:
            yield
        except Refused as refused:
            self.close_connection = True  # the body may not have been read
            self._send_json({"error": refused.args[1]}, refused.args[0])
        except Contradiction as told:
            self._send_json({"error": str(told), "kept": told.kept, "test": told.test}, HTTPStatus.CONFLICT)
        except UserError as error:
            self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except ConnectionError:
            self.close_connection = True  # the page was closed
        except Exception as error:
            log.exception("A request of the page failed.")
            self._send_json({"error": f"{error!r}"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _asked_for(self) -> str:
        """What follows the token. Raises Refused."""
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "This server answers this machine alone.")
        token, slash, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "Open the whole address that al-bench label has printed.")
        return name

    def _content(self) -> dict[str, Any]:
        """The JSON of a post. Raises Refused."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LONGEST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A post holds at most {LONGEST:,} bytes.")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A post holds JSON.")
        try:
            content = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "A post holds a JSON object.")
        return content

    def _send_json(self, content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(
        self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: str = "default-src 'none'"
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def served(session: Session, port: int = 0) -> Iterator[Server]:
    """A server at work in threads of its own."""
    with Server(session, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="al_bench page", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
