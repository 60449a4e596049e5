"""Supervise a run: start it, watch it, restart it, continue without a lost host."""

import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.base.errors import InputError, Stopped, UserError
from launcher.hosts.hostfile import Hosts, count, fitting
from launcher.hosts.probe import Facts
from launcher.hosts.ssh import SSH_OPTIONS, call_hosts
from launcher.hosts.sweep import SECONDS as SWEEP_SECONDS
from launcher.hosts.sweep import sweep
from launcher.metrics import LauncherMetrics
from launcher.run.attempt import Attempt
from launcher.run.causes import AttemptOutcome, describe_failure, next_action
from launcher.run.command import (
    ClusterLaunch,
    check_working_folder,
    cluster_command,
)
from launcher.run.console import StatusLog, show_preflight
from launcher.run.job import TrainJob
from launcher.run.preflight import PreflightReport, rendezvous_address, run_preflight
from launcher.run.restarts import Restarts
from launcher.run.signals import on_stop
from launcher.run.variables import environment_script, exported_variables, masked_exports
from smdt.training.checkpoints import checkpoint
from smdt.training.ranks.lease import ATTEMPT_VARIABLE, LEASE_VARIABLE
from smdt.training.ranks.lease_holder import LeaseHolder

MODULE = "smdt.train"
ENVIRONMENT = "launch-environment.sh"
"""File of the run folder that every host sources while an attempt starts."""
MASKS = "launch-exports"
"""File of the run folder that DeepSpeed reads; it holds no values."""
WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class SupervisorOptions:
    """Options of the supervision of a run.

    Attributes:
        hostfile: DeepSpeed's.
        hosts: the slots of it that may be used.
        address: where the ranks meet; None for the first host's own.
        variables: to pass on to every rank; their values are never shown.
        deepspeed_env: lines of the hosts' script, of DeepSpeed's own file of variables.
        max_restarts: restarts in a row that bring no new checkpoint.
        wait_seconds: before the first restart.
        stall_seconds: how long a run may make no step before it counts as hanging.
    """

    hostfile: Path
    hosts: Hosts
    address: str | None
    variables: Mapping[str, str]
    deepspeed_env: Sequence[str]
    max_restarts: int
    wait_seconds: float
    stall_seconds: float


class Supervisor:
    """Runs a job on hosts until it is done, stopped, or failed for good.

    Args:
        job: what to train.
        options: where and how.
        metrics: the launcher's.
        status: where it reports what happens.
    """

    def __init__(
        self, job: TrainJob, options: SupervisorOptions, metrics: LauncherMetrics, status: StatusLog
    ) -> None:
        self._job = job
        self._options = options
        self._metrics = metrics
        self._status = status
        self._lease = job.folder.lease.absolute()
        self._script = job.folder.root.absolute() / ENVIRONMENT
        self._masks = job.folder.root.absolute() / MASKS
        self._abandoned = False
        self._before = set(checkpoint.published(job.folder.checkpoints))

    def run(self) -> None:
        """Supervise the run to its end.

        Raises:
            Stopped: it was asked to stop and has saved.
            UserError: it failed, or a host is not ready for it.
        """
        folder = self._job.folder
        with LeaseHolder(self._lease) as holder, on_stop(self._take_signal):
            folder.stop.unlink(missing_ok=True)
            self._sweep()
            restarts = Restarts(self._options.max_restarts, self._options.wait_seconds, self._step)
            seen: PreflightReport | None = self._first_look()
            while True:
                evidence = self._try(holder, seen)
                step, asked = self._step, self._asked_to_stop
                restarts = restarts.after_attempt(step)
                match next_action(evidence, asked_to_stop=asked):
                    case "done":
                        self._status(f"done; everything is in {folder.root}")
                        return
                    case "stopped":
                        raise Stopped(
                            f"Stopped; the newest checkpoint is of step {step}: "
                            "start the same command again to resume."
                        )
                    case "over":
                        raise UserError(
                            f"The run in {folder.root} failed: {describe_failure(evidence)}."
                        )
                if holder.lost:
                    raise UserError(f"Another launcher has taken over the run in {folder.root}.")
                self._status(
                    f"the attempt ended: {describe_failure(evidence)}; saved is step {step}"
                )
                if restarts.exhausted:
                    raise UserError(
                        f"The run in {folder.root} failed: {describe_failure(evidence)}; "
                        f"{restarts.limit} restarts brought no new checkpoint."
                    )
                self._wait(restarts.wait_seconds)
                self._metrics.restarts.inc()
                seen = None

    @property
    def _step(self) -> int:
        """Step of the newest published checkpoint, 0 before the first."""
        newest = checkpoint.published(self._job.folder.checkpoints)[:1]
        return checkpoint.step_of(newest[0]) if newest else 0

    @property
    def _asked_to_stop(self) -> bool:
        return self._abandoned or self._job.folder.stop.exists()

    def _take_signal(self, again: bool) -> None:
        if not again:
            self._status("stopping: the ranks finish their step and save")
            try:
                self._job.folder.stop.touch()
                return
            except OSError as error:
                self._status(
                    f"{self._job.folder.stop}: {error.strerror}; ending the ranks without saving"
                )
        self._abandoned = True

    def _first_look(self) -> PreflightReport:
        seen = self._look()
        if any(finding.blocking for finding in seen.findings):
            passed = len(seen.passed(self._options.hosts))
            raise UserError(
                f"{passed} of {len(self._options.hosts)} hosts are ready; "
                "the table says what to do, --exclude leaves a host out."
            )
        return seen

    def _look(self) -> PreflightReport:
        options = self._options
        seen = run_preflight(self._job, options.hosts, options.variables, options.address)
        if seen.findings:
            show_preflight(seen, options.hosts)
        return seen

    def _try(self, holder: LeaseHolder, seen: PreflightReport | None) -> AttemptOutcome:
        """Make one attempt on the hosts that are ready; without a look, look first."""
        try:
            seen = seen or self._look()
            passed = seen.passed(self._options.hosts)
            batch = self._job.config.batch
            hosts = fitting(passed, batch.global_batch, batch.chunks)
            self._count_hosts(passed, hosts)
            if self._asked_to_stop:
                return AttemptOutcome(None)
            if not hosts:
                raise InputError("no host is ready")
            return self._run(holder, hosts, seen.facts[next(iter(hosts))])
        except (InputError, OSError) as error:  # storage that is full or away, for the moment
            return AttemptOutcome({"status": "failed", "reason": str(error), "retry": True})

    def _run(self, holder: LeaseHolder, hosts: Hosts, first: Facts) -> AttemptOutcome:
        """Start the ranks, wait for their end, and clean up."""
        folder = self._job.folder
        number = 1 + len(list(folder.logs.glob("attempt-*.log")))
        log = folder.logs / f"attempt-{number:04d}.log"
        name = f"{number}-{secrets.token_hex(4)}"
        plan = ClusterLaunch(
            module=MODULE,
            arguments=self._job.arguments(self._resume),
            hostfile=self._options.hostfile,
            hosts=hosts,
            address=rendezvous_address(first, self._options.address),
            port=first.port,
            environment=self._script,
        )
        on_cpu = {"DS_ACCELERATOR": "cpu"} if first.device == "cpu" else {}
        ours = {LEASE_VARIABLE: str(self._lease), ATTEMPT_VARIABLE: name}
        files = {"PDSH_SSH_ARGS_APPEND": _ssh_options(), "DS_ENV_FILE": str(self._masks)}
        environment = {**os.environ, **on_cpu, **ours, **files}
        holder.begin(name)
        try:
            self._write_script({**on_cpu, **self._options.variables, **ours})
            self._status(f"attempt {number}: {count(hosts)} ranks on {', '.join(hosts)}")
            attempt = Attempt(cluster_command(plan), environment, folder, name, log)
            try:
                stalled_seconds = attempt.watch(
                    self._options.stall_seconds, lambda: self._abandoned or holder.lost
                )
            finally:
                holder.end()
                attempt.kill()
                if not holder.lost:  # what runs on the hosts is the other launcher's by now
                    self._sweep()
        finally:
            self._script.unlink(missing_ok=True)
            self._masks.unlink(missing_ok=True)
        return attempt.evidence(stalled_seconds)

    @property
    def _resume(self) -> str:
        """Return the user's choice, until this launch has a checkpoint."""
        published = set(checkpoint.published(self._job.folder.checkpoints))
        return "auto" if published - self._before else self._job.resume

    def _count_hosts(self, passed: Hosts, used: Hosts) -> None:
        left_out = [host for host in self._options.hosts if host not in passed]
        idle = [host for host in passed if host not in used]
        counts = {"used": len(used), "idle": len(idle), "left_out": len(left_out)}
        self._metrics.set_hosts(counts)
        if left_out:
            self._status(f"left out: {', '.join(left_out)}")
        if idle:
            self._status(f"not needed for a batch that divides evenly: {', '.join(idle)}")

    def _write_script(self, variables: Mapping[str, str]) -> None:
        """Write what every host sources; values stay out of all command lines."""
        exported = exported_variables(os.environ, Path.cwd())
        text = environment_script({**exported, **variables}, self._options.deepspeed_env)
        self._script.unlink(missing_ok=True)
        descriptor = os.open(self._script, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.fsencode(text))
        self._masks.write_text(masked_exports(exported))

    def _sweep(self) -> None:
        """End what is left of the run on all hosts and here."""
        question = ("sweep", {"lease": str(self._lease)})
        answers = call_hosts(dict.fromkeys(self._options.hosts, question), 3 * SWEEP_SECONDS)
        sweep(str(self._lease))
        for host, answer in answers.items():
            left = answer.content.get("left", [])
            if answer.error:
                self._status(f"{host} could not end the processes of the run: {answer.error}")
            elif left:
                self._status(f"{host} could not end processes {left}: is its storage stuck?")
            elif answer.content["killed"]:
                self._status(f"{answer.content['killed']} processes were ended on {host}")

    def _wait(self, seconds: float) -> None:
        """Wait, unless the run should stop."""
        self._status(f"next attempt in {seconds:g} s")
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._asked_to_stop:
            time.sleep(WAIT_SECONDS)


def check_tools() -> None:
    """Check that what starts ranks on other hosts is installed, and can start them from here.

    Raises:
        InputError: it is not, or cannot.
    """
    check_working_folder(Path.cwd(), sys.executable)
    for tool in ("ssh", "pdsh"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is not installed here: apt-get install openssh-client pdsh")


def _ssh_options() -> str:
    return " ".join([os.environ.get("PDSH_SSH_ARGS_APPEND", ""), *SSH_OPTIONS]).strip()
