"""A cluster of three hosts for all tests here, and runs that the launcher starts on it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from smdt.training.checkpoints.run_folder import RunFolder
from tests.cluster.bed import TOOLS, HostCluster, bed
from tests.cluster.launches import Launch
from tests.namespaces import require_namespaces

HOSTS = ("a", "b", "c")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Everything here starts processes of its own, and has the machine for itself."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.distributed)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[HostCluster]:
    """The bed, brought up once."""
    require_namespaces(*TOOLS)
    with bed(tmp_path_factory.mktemp("cluster"), HOSTS) as up:
        yield up


@pytest.fixture(scope="session")
def undisturbed_folder(tmp_path_factory) -> RunFolder:
    """Where the run goes that the others must equal."""
    return RunFolder(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def undisturbed(undisturbed_folder, launch, write_config) -> RunFolder:
    """A run on two hosts, ZeRO-2 and bf16, that nothing happens to; made once."""
    if not undisturbed_folder.root.exists():
        launch(write_config(undisturbed_folder.root, precision="bf16")).wait()
    return undisturbed_folder


@pytest.fixture
def launch(cluster) -> Iterator[Callable[..., Launch]]:
    """Start `smdt launch up` on the first host; what is left of it is killed after the test."""
    started: list[Launch] = []

    def start(config: Path, *options: str, include: str = "a@b", zero: int = 2) -> Launch:
        started.append(Launch(cluster, config, include, zero, options))
        return started[-1]

    yield start
    for host in cluster.hosts:
        host.mend()
    for each in started:
        each.clear_up()
