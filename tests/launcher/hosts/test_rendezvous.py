import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.hosts.rendezvous import check_reachable, serve_token
from smdt.training.ranks.environment import free_port


def test_hosts_that_call_hear_the_token():
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        callers = [
            pool.submit(check_reachable, "127.0.0.1", port, "secret", 10.0) for _ in range(2)
        ]
        assert serve_token(port, "secret", calls=2, seconds=10.0) == 2
        assert [caller.result() for caller in callers] == ["", ""]


def test_nobody_calls():
    assert serve_token(free_port(), "secret", calls=1, seconds=0.1) == 0


def test_nobody_listens():
    assert check_reachable("127.0.0.1", free_port(), "secret", 0.2) == "Connection refused"


def test_another_program_listens():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        caller = pool.submit(check_reachable, "127.0.0.1", server.getsockname()[1], "secret", 0.2)
        connection, _ = server.accept()
        connection.sendall(b"hello!")
        connection.close()
        server.close()
        assert caller.result() in ("another program answers", "Connection refused")


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server, pytest.raises(OSError, match="in use"):
        serve_token(server.getsockname()[1], "secret", calls=1, seconds=1.0)
