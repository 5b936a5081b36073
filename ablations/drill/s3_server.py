"""An S3 server on this machine (moto's), in a thread of this process, which fails on demand."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Faults:
    """What the server does to the next requests: ``("503", n)``, ``("drop", n)``, ``("slow", n)`` of them."""

    kind: str = ""
    left: int = 0
    only: str = ""
    """With such a text in method and path, "PUT /bucket/..."."""
    seconds: float = 0.3
    seen: list[str] = field(default_factory=list)
    """Every request, in that form."""

    def inject(self, kind: str, count: int, only: str = "") -> None:
        self.kind, self.left, self.only = kind, count, only

    def clear(self) -> None:
        self.inject("", 0)
        self.seen.clear()


def _with_faults(app: Any, faults: Faults) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        faults.seen.append(request)
        if faults.left > 0 and faults.only in request:
            faults.left -= 1
            if faults.kind == "slow":
                time.sleep(faults.seconds)
            elif faults.kind == "drop":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionError
            else:
                start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
                return [SLOW_DOWN]
        found: Iterable[bytes] = app(environ, start)
        return found

    return answer


@contextmanager
def s3_server() -> Iterator[tuple[str, Faults]]:
    """The server's address, and its faults, while the block runs. Needs moto."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None: ...

    faults = Faults()
    app = _with_faults(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        thread.join()


def variables(address: str) -> Mapping[str, str]:
    """The environment variables with which a process takes the server at ``address`` for S3."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
