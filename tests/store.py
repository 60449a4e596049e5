"""An S3 store on loopback, and a way to it that can be slow, cut and mended."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moto.server import ThreadedMotoServer

from data_shards.base.store import location

KEY_ID = "AKIAKEYIDFORTESTS"
SECRET = "a-secret-that-is-nowhere-to-be-seen"


class Proxy:
    """Forwards connections to a port of loopback.

    Attributes:
        port: of the proxy.
        delay_seconds: before each piece of an answer.
        connections: that were opened so far.
        bytes_down: that came from the server so far.
    """

    def __init__(self, to_port: int) -> None:
        self.delay_seconds = 0.0
        self.connections = 0
        self.bytes_down = 0
        self._to_port = to_port
        self._cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and each new one at once."""
        self._cut.set()

    def mend(self) -> None:
        """Forward again."""
        self._cut.clear()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self._cut.is_set():
                return
            with socket.create_connection(("127.0.0.1", self._to_port)) as server:
                while not self._cut.is_set():
                    readable, _, _ = select.select([client, server], [], [], 0.05)
                    for end in readable:
                        if not self._pass_on(end, server if end is client else client, server):
                            return

    def _pass_on(self, end: socket.socket, other: socket.socket, server: socket.socket) -> bool:
        try:
            data = end.recv(1 << 16)
            if end is server:
                time.sleep(self.delay_seconds)
                self.bytes_down += len(data)
            other.sendall(data)
        except OSError:
            return False
        return bool(data)


@dataclass(frozen=True)
class S3:
    """A folder in a store that a test may use, and the way there."""

    url: str
    proxy: Proxy

    def files(self, url: str) -> dict[str, bytes]:
        """Every file below a URL: name -> bytes."""
        root = location(url)
        return {
            path.removeprefix(f"{root.path}/"): root.fs.cat_file(path)
            for path in root.fs.find(root.path)
        }

    def put(self, folder: Path, url: str) -> None:
        """Copy a local data set."""
        root = location(url)
        for path in folder.rglob("*"):
            if path.is_file():
                root.fs.put_file(str(path), f"{root.path}/{path.relative_to(folder)}")


@contextmanager
def s3_store() -> Iterator[Proxy]:
    """Serve an empty S3 with a bucket `data`; ends with the block."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    proxy = Proxy(port)
    boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    ).create_bucket(Bucket="data")
    try:
        yield proxy
    finally:
        proxy.close()
        server.stop()


def environment(proxy: Proxy) -> dict[str, str]:
    """The variables that lead a process to the store."""
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
    }
