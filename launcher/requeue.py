"""Restart decision of a job script after its ranks end: `python -m launcher.requeue RUN`.

`state.json` decides, if it is of the attempt that the environment names. Exit code 0: the run is
done, or stopped on request; 75: start it again; 1: it is over.
"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from data_shards.base.errors import EXIT_STOPPED, run
from launcher.run.causes import AttemptOutcome, describe_failure, next_action
from launcher.run.restarts import Restarts
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder, write_json
from smdt.training.ranks.lease import ATTEMPT_VARIABLE

FILE = "restarts.json"
"""File of the run folder with the restart counts and the Slurm job."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def requeue(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    max_restarts: Annotated[
        int | None,
        typer.Option(min=0, help="Failures in a row without a new checkpoint; else none is."),
    ] = None,
    asked_to_stop: Annotated[
        bool, typer.Option("--asked-to-stop", help="A user did; then it is never started again.")
    ] = False,
) -> int:
    """Say whether a run should start again."""
    state = RunFolder(folder).read_state_of(os.environ.get(ATTEMPT_VARIABLE))
    evidence = AttemptOutcome(state)
    verdict = next_action(evidence, asked_to_stop=asked_to_stop)
    if verdict == "done":
        print(f"The run in {folder} is done.")
        return 0
    if asked_to_stop:
        print(f"The run in {folder} was asked to stop: {_how_it_stopped(evidence)}.")
        return 0
    again = verdict == "again"
    if again and (state is None or state["status"] != "preempted"):
        again = max_restarts is not None and _count(folder, max_restarts)
    why = (
        describe_failure(evidence)
        if state and state["status"] != "running"
        else "its ranks were ended"
    )
    print(f"The run in {folder} {'starts again' if again else 'is over'}: {why}.")
    return EXIT_STOPPED if again else 1


def _how_it_stopped(evidence: AttemptOutcome) -> str:
    state = evidence.state or {"status": "running"}
    match state["status"]:
        case "preempted":
            return f"all ranks saved after step {state['step']}"
        case "failed":
            return f"it failed: {describe_failure(evidence)}"
    return "its ranks ended before they saved"


def _count(folder: Path, max_restarts: int) -> bool:
    """Count an end without success; return whether another start is allowed."""
    file = folder / FILE
    newest = checkpoint.published(RunFolder(folder).checkpoints)[:1]
    step = checkpoint.step_of(newest[0]) if newest else 0
    job = os.environ.get("SLURM_JOB_ID")
    restarts = Restarts(max_restarts, 0.0, **_counted(file, job)).after_attempt(step)
    write_json(file, {"step": restarts.step, "in_vain": restarts.in_vain, "job": job})
    return not restarts.exhausted


def _counted(file: Path, job: str | None) -> dict[str, int]:
    """Return the outcomes of earlier starts of this job; a newly submitted job has none.

    Slurm counts the restarts of a job, and a submission has a number of its own.
    """
    nothing = {"step": 0, "in_vain": 0}
    if job is not None and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return nothing
    try:
        before = json.loads(file.read_text())
        return nothing if before.get("job") != job else {key: int(before[key]) for key in nothing}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return nothing


if __name__ == "__main__":
    run(app)
