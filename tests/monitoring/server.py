"""A real Prometheus on loopback, with the project's own configuration and rules, only faster."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from monitoring.files import FOLDER, rules_text
from monitoring.times import RuleDurations
from tests.system_packages import require

SPEED = 60
"""How much shorter than in `rules.yml` everything lasts: minutes are seconds."""
SCRAPE = "250ms"
"""As many scrapes in the window of a rate as in 5 minutes of 15 s each."""

Series = dict[str, str]


class Prometheus:
    """A server that scrapes what announces itself in `targets`.

    Args:
        folder: of its files, empty.
        tls_config: of its scrapes, as `prometheus.yml` shows it.
    """

    def __init__(self, folder: Path, tls_config: Mapping[str, str] | None = None) -> None:
        self.targets = folder / "targets"
        self.targets.mkdir(parents=True)
        self.times = RuleDurations().scaled(SPEED)
        (folder / "rules.yml").write_text(rules_text(self.times))
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
        if tls_config is not None:
            config["scrape_configs"][0]["tls_config"] = dict(tls_config)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        require("prometheus")
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        self.wait_until(lambda: self._is_ready(), "Prometheus is ready", 30)

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **parameters: object) -> dict:
        """Return the data of an answer of its API."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[tuple[Series, float]]:
        """Return labels and value of every series that an expression has now."""
        result = self.get("query", query=expr)["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def firing(self, alert: str) -> list[Series]:
        """Return the labels of the alerts of that name that fire."""
        alerts = self.get("alerts")["alerts"]
        return [
            each["labels"]
            for each in alerts
            if each["labels"]["alertname"] == alert and each["state"] == "firing"
        ]

    def wait_until(
        self, condition: Callable[[], object], what: str, seconds: float = 60.0
    ) -> object:
        """Wait until a condition is true; return what it returned."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self._process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < end, f"waited {seconds} s for: {what}"
            time.sleep(0.2)
        return found

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return answer.status == 200
        except (URLError, ConnectionError, TimeoutError):
            return False
