import errno
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from data_shards.base.errors import InputError, Stopped, UserError
from data_shards.base.exporter import LOOPBACK, Endpoint, Exporter, Tls
from tests.pki import make_pki

LABELS = {"run": "a-run", "rank": "3"}


@pytest.fixture
def turns():
    return Counter("turns", "Turns", ("who",), registry=CollectorRegistry())


@pytest.fixture
def registry(turns):
    registry = CollectorRegistry()
    registry.register(turns)
    turns.labels("me").inc(5)
    return registry


def read(exporter, scheme="http", context=None):
    url = f"{scheme}://127.0.0.1:{exporter.port}/metrics"
    with urlopen(url, context=context, timeout=10) as answer:
        return answer.read().decode()


def test_an_endpoint_serves_its_registry_and_says_where(registry, tmp_path):
    target = tmp_path / "targets" / "rank.json"
    with Exporter(registry, LOOPBACK, target, LABELS) as exporter:
        (entry,) = json.loads(target.read_text())
        assert entry == {"targets": [f"127.0.0.1:{exporter.port}"], "labels": LABELS}
        text = read(exporter)
        assert 'turns_total{who="me"} 5.0' in text
        assert "_created" not in text
    assert not target.exists()


def test_a_port_that_is_taken_ends_nothing(registry, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with Exporter(registry, Endpoint(taken), tmp_path / "rank.json", LABELS) as exporter:
            assert exporter.port != taken
            assert f":{exporter.port}" in (tmp_path / "rank.json").read_text()


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_of_this_machine_is_said(registry, tmp_path, address):
    target = tmp_path / "job.json"
    with pytest.raises(InputError, match=f"metrics can't be served at {address} .*127.0.0.1"):
        Exporter(registry, Endpoint(address=address), target, {})
    assert not target.exists()


def test_what_may_be_otherwise_soon_is_not_the_users_fault(registry, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"No space left on device.*name a folder") as said:
        Exporter(registry, LOOPBACK, tmp_path / "job.json", {})
    assert not isinstance(said.value, InputError)


def test_an_entry_that_cannot_be_written_is_said_and_frees_the_port(registry, tmp_path):
    (tmp_path / "file").touch()
    before = threading.active_count()
    with pytest.raises(InputError, match=r"entry can't be written to .*file \(File exists\)"):
        Exporter(registry, LOOPBACK, tmp_path / "file" / "job.json", {})
    assert threading.active_count() == before


def test_an_endpoint_on_every_address_is_found_by_name(registry, tmp_path):
    target = tmp_path / "rank.json"
    with Exporter(registry, Endpoint(0, "0.0.0.0"), target, LABELS) as exporter:
        assert json.loads(target.read_text())[0]["targets"] == [
            f"{socket.gethostname()}:{exporter.port}"
        ]


def test_what_failed_is_still_read_before_the_endpoint_closes(turns, registry, tmp_path):
    seen = []

    def prometheus(exporter):
        time.sleep(1.0)
        seen.append(read(exporter))

    def fail():
        with Exporter(registry, LOOPBACK, tmp_path / "r", {}) as exporter:
            read(exporter)
            threading.Thread(target=prometheus, args=(exporter,)).start()
            turns.labels("me").inc()
            raise UserError("the loss is not finite")

    with pytest.raises(UserError, match="not finite"):
        fail()
    assert 'turns_total{who="me"} 6.0' in seen[0]


@pytest.mark.parametrize(("scraped", "error"), [(False, UserError("a")), (True, Stopped("b"))])
def test_nobody_waits_where_nobody_reads_or_nothing_failed(registry, tmp_path, scraped, error):
    start = time.monotonic()

    def leave():
        with Exporter(registry, LOOPBACK, tmp_path / "r", {}) as exporter:
            if scraped:
                read(exporter)
            raise error

    with pytest.raises(type(error)):
        leave()
    assert time.monotonic() - start < 5


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder)
    return folder


def client(pki, name=None):
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    if name is not None:
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return context


def test_an_endpoint_speaks_https_and_prometheus_is_told(pki, registry, tmp_path):
    tls = Tls.parse(f"{pki}/server.pem,{pki}/server.key")
    target = tmp_path / "rank.json"
    with Exporter(registry, Endpoint(tls=tls), target, LABELS) as exporter:
        assert json.loads(target.read_text())[0]["labels"]["__scheme__"] == "https"
        assert "turns_total" in read(exporter, "https", client(pki))
        with pytest.raises(ConnectionError):
            read(exporter, "http")
        with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
            read(exporter, "https", ssl.create_default_context())


def test_only_clients_of_the_authority_are_answered(pki, registry, tmp_path):
    tls = Tls.parse(f"{pki}/server.pem,{pki}/server.key,{pki}/ca.pem")
    with Exporter(registry, Endpoint(tls=tls), tmp_path / "rank.json", LABELS) as exporter:
        assert "turns_total" in read(exporter, "https", client(pki, "client"))
        for name in (None, "stranger"):
            with pytest.raises((ConnectionError, ssl.SSLError, URLError)):
                read(exporter, "https", client(pki, name))


def test_a_client_that_says_nothing_keeps_nobody_waiting(pki, registry, tmp_path):
    tls = Tls(pki / "server.pem", pki / "server.key")
    with (
        Exporter(registry, Endpoint(tls=tls), tmp_path / "rank.json", LABELS) as exporter,
        socket.create_connection(("127.0.0.1", exporter.port)),
    ):
        assert "turns_total" in read(exporter, "https", client(pki))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ("server.pem,none.key", "file not found"),
        ("server.pem,client.key", r"client.key must be a certificate, its key in PEM form"),
        ("server.pem,server.key,client.key", "must be a certificate, its key"),
    ],
)
def test_wrong_files_are_said_in_one_sentence(pki, registry, tmp_path, files, sentence):
    tls = Tls.parse(",".join(f"{pki}/{name}" for name in files.split(",")))
    with pytest.raises(InputError, match=sentence):
        Exporter(registry, Endpoint(tls=tls), tmp_path / "rank.json", LABELS)


CHECK = "from data_shards.base.exporter import Tls; Tls.parse({!r}).check()"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("form", ["-aes256", "-traditional"])
def test_an_encrypted_key_is_refused_at_once_and_nothing_asks(pki, tmp_path, terminal, form):
    encrypted = tmp_path / "encrypted.key"
    words = ["openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", f"{pki}/server.key"]
    more = [] if form == "-aes256" else [form]
    subprocess.run([*words, *more, "-out", encrypted], check=True, capture_output=True)
    program = [sys.executable, "-c", CHECK.format(f"{pki}/server.pem,{encrypted}")]
    if terminal:
        program = [sys.executable, "-c", f"import pty; pty.spawn({program!r})"]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    said = done.stdout + done.stderr
    assert f"the key {encrypted} is encrypted" in said
    assert "pass phrase:" not in said.replace("its pass phrase:", "")
