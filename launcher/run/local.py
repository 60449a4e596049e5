"""Run a plan on this machine: start `deepspeed`, pass a stop request on, say how it ended."""

import os
import signal
import subprocess
from dataclasses import replace

from data_shards.base.errors import Stopped, UserError
from launcher.run.command import LocalLaunch, local_attempt, local_command, local_environment
from launcher.run.signals import on_stop
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.ranks.lease_holder import LeaseHolder


def run_local(plan: LocalLaunch, folder: RunFolder) -> None:
    """Start the plan and wait for its end.

    Interrupt, SIGTERM or SIGUSR1 touches the run's stop file: the ranks finish their step and
    save. A second one ends them at once. How the run ended is read from `state.json` alone:
    DeepSpeed's launcher does not pass exit codes on faithfully, and a rank that has finished may
    still abort when its interpreter ends (gloo's threads, rarely).

    Raises:
        Stopped: the run was stopped and has saved.
        UserError: the run failed, or another process runs it.
    """
    folder.create()
    with LeaseHolder(folder.lease) as holder:
        folder.stop.unlink(missing_ok=True)
        holder.begin(local_attempt(os.getpid()))
        process = _start(replace(plan, lease=folder.lease.absolute()))
        with on_stop(lambda again: _pass_on(process, folder, again)):
            process.wait()
    if holder.lost:
        raise UserError(f"Another launcher has taken over the run in {folder.root}.")
    state = folder.read_state_of(local_attempt(os.getpid())) or {}
    if state.get("status") == "preempted":
        raise Stopped(f"Stopped at step {state['step']} and saved; start again to resume.")
    if state.get("status") != "done":
        reason = state.get("reason") or "a rank ended before its time"
        raise UserError(f"The run in {folder.root} failed: {reason} (see {folder.logs})")


def run_ranks(plan: LocalLaunch) -> None:
    """Start ranks that keep what they finish, and wait for their end.

    Interrupt or SIGTERM ends them at once. Whether all is done is for the caller to find out:
    DeepSpeed's launcher does not pass exit codes on faithfully.

    Raises:
        KeyboardInterrupt: they were stopped.
    """
    process = _start(plan)
    stopped = False

    def stop(again: bool) -> None:  # noqa: ARG001 (one is enough)
        nonlocal stopped
        stopped = True
        os.killpg(process.pid, signal.SIGKILL)

    with on_stop(stop):
        process.wait()
    if stopped:
        raise KeyboardInterrupt


def _start(plan: LocalLaunch) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        local_command(plan),
        env=local_environment(plan, os.environ, os.getpid()),
        start_new_session=True,  # a terminal's interrupt must reach us alone
    )


def _pass_on(process: subprocess.Popen[bytes], folder: RunFolder, again: bool) -> None:
    if again:
        os.killpg(process.pid, signal.SIGKILL)
    elif folder.root.is_dir():
        folder.stop.touch()
