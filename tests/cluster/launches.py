"""A run that `smdt launch up` has started on the bed, and how to look after it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.cluster.bed import HostCluster
from tests.namespaces import Host

ROOT = Path(__file__).parent.parent.parent
DEEPSPEED_FILES = ROOT / "configs" / "deepspeed"
TOTAL = 24
"""Steps of a run: 3 epochs of 8."""
QUICK = ("--wait-seconds", "1")


class Launch:
    """A launcher on the first host of a bed."""

    def __init__(
        self, bed: HostCluster, config: Path, include: str, zero: int, options: Sequence[str]
    ) -> None:
        self.bed = bed
        self.config = config
        self.run = RunFolder(yaml.safe_load(config.read_text())["run"]["out"])
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the launch)
        settings = DEEPSPEED_FILES / f"zero{zero}.json"
        words = ["up", "--hostfile", bed.hostfile, "--include", include, "--config", config]
        words += ["--deepspeed_config", settings, "--env", "OMP_NUM_THREADS", *QUICK, *options]
        self.process = subprocess.Popen(
            launch_command(bed.hosts[0], *words),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    @property
    def output(self) -> str:
        """What the launcher and the ranks have printed so far."""
        self._output.seek(0)
        return self._output.read()

    @property
    def steps(self) -> int:
        """The last step that the run has recorded."""
        return max(losses(self.run), default=0)

    def wait_for(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait until `condition` is true while the launcher runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.02)

    def wait(self, exit_code: int = 0, seconds: float = 300) -> str:
        """Wait for the end; return what was printed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.output) from None
        assert self.process.returncode == exit_code, self.output
        return self.output

    def say(self, word: str) -> float | None:
        """When the launcher first said this, in seconds after midnight; None if it did not."""
        for line in self.output.splitlines():
            match = re.match(r"(\d\d):(\d\d):(\d\d) launcher: (.*)", line)
            if match is not None and word in match[4]:
                return 3600.0 * int(match[1]) + 60.0 * int(match[2]) + float(match[3])
        return None

    def metrics(self) -> str:
        """What the launcher's endpoint says, empty while there is none."""
        target = self.run.targets / "test-launcher.json"
        if not target.exists():
            return ""
        (entry,) = json.loads(target.read_text())
        url = f"http://{entry['targets'][0]}/metrics"
        read = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
        return self.bed.hosts[0].run(sys.executable, "-c", read, url).stdout

    def ranks(self, host: Host) -> list[int]:
        """Process ids, as seen from outside, of the run's ranks on a host."""
        return self._processes(host, "--local_rank")

    def launchers(self, host: Host) -> list[int]:
        """Process ids of DeepSpeed's per-host launcher."""
        return self._processes(host, "deepspeed.launcher.launch")

    def supervisors(self) -> list[int]:
        """Process ids of `smdt launch up`."""
        return self._processes(self.bed.hosts[0], "launcher\0up")

    def left(self) -> list[str]:
        """Command lines of what still belongs to the run on any host."""
        found = []
        for host in self.bed.hosts:
            for pid in host.processes():
                command = _command(pid)
                if str(self.config) in command or str(self.run.root) in command:
                    found.append(f"{host.name}: {command}".replace("\0", " "))
        return found

    def clear_up(self) -> None:
        """Kill what a failed test has left."""
        for host in self.bed.hosts:
            for pid in self._processes(host, str(self.config)):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._output.close()

    def _processes(self, host: Host, word: str) -> list[int]:
        commands = {pid: _command(pid) for pid in host.processes()}
        wanted = (str(self.config), word)
        return [
            pid
            for pid, command in commands.items()
            if all(each in command for each in wanted)
            and not command.startswith(("ssh", "pdsh", "bash", "nsenter"))
        ]


def now() -> float:
    """Seconds after midnight, as the launcher says them."""
    local = time.localtime()
    return 3600.0 * local.tm_hour + 60.0 * local.tm_min + local.tm_sec


def launch_command(host: Host, *words: object) -> list[str]:
    """The command that runs `smdt launch` on a host."""
    return host.command([sys.executable, "-m", "launcher", *words])


def losses(run: RunFolder) -> dict[int, float]:
    """The loss curve."""
    return {r["step"]: r["losses"]["loss"] for r in run.read_metrics() if "losses" in r}


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """The last checkpoint's weights, checked against its list of hashes."""
    folder = checkpoint.folder_of(run.checkpoints, TOTAL)
    assert checkpoint.integrity_error(folder) == ""
    return load_file(folder / checkpoint.WEIGHTS)


def assert_same(run: RunFolder, undisturbed: RunFolder) -> None:
    """A run that something happened to made the same steps and has the same weights, to the bit."""
    assert losses(run) == losses(undisturbed)
    assert list(losses(run)) == list(range(1, TOTAL + 1))
    ours, theirs = weights(run), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
