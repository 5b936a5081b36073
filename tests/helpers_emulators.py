"""Emulators of Google's and Azure's stores on this machine, for nightly tests.

They are not among the project's packages: ``pip install gcsfs gcp-storage-emulator adlfs``, ``npm install -g azurite``.
"""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from lgd.storage import store as storage
from tests.helpers_storage import BUCKET

AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The one that every Azurite has (its documentation, "Default storage account")."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def google() -> Iterator[None]:
    """Inside, this process and those that it starts take an emulator, with the bucket BUCKET, for Google's."""
    pytest.importorskip("gcsfs")
    server_of = pytest.importorskip("gcp_storage_emulator.server")
    port = _free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gcp_storage_emulator.handlers.objects._multipart_upload", _conditional_upload())
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # gcsfs would ask for the kind of the bucket by gRPC, which the emulator does not speak.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        server = server_of.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
        server.start()
        try:
            yield
        finally:
            server.stop()
            storage._filesystems.clear()


def _conditional_upload() -> Any:
    """The emulator's answer to an upload, but for ``ifGenerationMatch=0``, which it does not know."""
    objects: Any = importlib.import_module("gcp_storage_emulator.handlers.objects")
    missing = importlib.import_module("gcp_storage_emulator.exceptions").NotFound
    upload, lock = objects._multipart_upload, threading.Lock()

    def answer(request: Any, response: Any, kept: Any) -> Any:
        with lock:
            if request.query.get("ifGenerationMatch") == ["0"]:
                try:
                    kept.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
                except missing:
                    pass
                else:
                    response.status = HTTPStatus.PRECONDITION_FAILED
                    return None
            return upload(request, response, kept)

    return answer


class Azurite:
    """Azure's store on this machine; what it holds lies in ``directory``, so that it may be stopped and started."""

    def __init__(self, program: str, directory: Path) -> None:
        self.port = _free_port()
        options = ["--blobPort", str(self.port), "--location", str(directory), "--skipApiVersionCheck", "--silent"]
        self._command = [program, *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _wait_for(self.port)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@contextmanager
def azure() -> Iterator[Azurite]:
    """Inside, this process and those that it starts take Azurite, with the container BUCKET, for Azure's."""
    pytest.importorskip("adlfs")
    if (program := shutil.which("azurite-blob")) is None:
        pytest.skip("no azurite-blob on the path")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        server = Azurite(program, Path(directory))
        try:
            endpoint = f"http://127.0.0.1:{server.port}/{AZURITE_ACCOUNT}"
            patch.setenv(
                "AZURE_STORAGE_CONNECTION_STRING",
                f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
                f"BlobEndpoint={endpoint};",
            )
            storage.filesystem("az").mkdir(BUCKET)
            yield server
            storage._filesystems.clear()
        finally:
            server.stop()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens at port {port}")
