"""Whether the hosts reach the place where the ranks will meet: one listens, the others call."""

import socket
import time
from contextlib import closing

CALL_SECONDS = 10.0
"""Seconds that a host tries to connect; the server may start later."""


def serve_token(port: int, token: str, calls: int, seconds: float) -> int:
    """Send `token` to every client.

    Args:
        port: TCP port on every address.
        token: what to say.
        calls: how many hosts will call.
        seconds: how long to wait for them.

    Returns:
        How many called.

    Raises:
        OSError: the port is taken.
    """
    end = time.monotonic() + seconds
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", port), family=family, dualstack_ipv6=both) as server:
        for heard in range(calls):
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                caller, _ = server.accept()
            except TimeoutError:
                return heard
            with caller:
                caller.sendall(token.encode())
    return calls


def check_reachable(address: str, port: int, token: str, seconds: float = CALL_SECONDS) -> str:
    """Connect until a peer sends `token`; return the reason on failure, empty on success."""
    end = time.monotonic() + seconds
    while True:
        left = max(0.1, end - time.monotonic())
        try:
            with closing(socket.create_connection((address, port), timeout=left)) as connection:
                if connection.recv(len(token), socket.MSG_WAITALL) == token.encode():
                    return ""
                reason = "another program answers"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > end:
            return reason
        time.sleep(0.1)
