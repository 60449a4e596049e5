"""The container image: it builds, and its user makes shards, verifies them and trains."""

import json
from collections.abc import Iterator

import pytest

from tests.image import COMMIT, IMAGE, TOOLS, Container, build, buildah
from tests.system_packages import require

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    require(*TOOLS, root=True)
    build()
    running = Container()
    yield running
    running.remove()


def test_the_image_is_smdt_for_a_user_without_rights(container):
    image = json.loads(buildah("inspect", "--type", "image", IMAGE).stdout)["OCIv1"]["config"]
    assert image["Entrypoint"] == ["smdt"]
    assert image["Cmd"] == ["--help"]
    assert image["User"] == "10001"
    assert container.run("id", "-u").stdout.strip() == "10001"
    assert container.run("touch", "/opt/smdt/file", check=False).returncode != 0
    assert "Usage: smdt" in container.run(*image["Entrypoint"], *image["Cmd"]).stdout


def test_nothing_is_missing_in_the_image(container):
    container.run("smdt", "doctor", "--json", "/tmp/doctor.json")
    found = json.loads(container.run("cat", "/tmp/doctor.json").stdout)
    assert [each["subject"] for each in found if each["cure"]] == []


def make_and_train(container: Container, folder: str, *options: str) -> None:
    """Go all the way from nothing to a trained run below `folder`."""
    shards, run = f"{folder}/shards", f"{folder}/run"
    sizes = ("--train", "8", "--val", "4", "--ground-size", "64x256", "--aerial-size", "96")
    container.run("smdt", "shards", "world", "--out", shards, *sizes, options=options)
    container.run("smdt", "shards", "verify", shards, options=options)
    container.run(
        *("smdt", "train", "--config", "world/retrieval"),
        *("--deepspeed_config", "zero2"),
        *(f"data.shards={shards}", f"run.out={run}"),
        *("batch.global=4", "schedule.length=2 steps", "schedule.warmup_steps=0"),
        options=options,
    )
    state, environment = (
        json.loads(container.run("cat", f"{run}/{file}.json", options=options).stdout)
        for file in ("state", "environment")
    )
    assert state["status"] == "done"
    assert environment["commit"] == COMMIT


def test_its_user_makes_shards_and_trains_on_them(container):
    make_and_train(container, ".")


def test_anybody_may_use_it(container, tmp_path):
    """As in `docker run --user $(id -u):$(id -g) --volume $PWD:/data`: nobody knows the user."""
    tmp_path.chmod(0o777)
    make_and_train(container, "/data", "--user", "4321:4321", "--volume", f"{tmp_path}:/data")
    assert (tmp_path / "run" / "state.json").stat().st_uid == 4321
