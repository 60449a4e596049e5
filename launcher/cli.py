"""`smdt launch`: run on many machines, and keep the run alive."""

import json
import os
import shlex
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import InputError, UserError
from data_shards.base.names import label_value
from launcher.hosts.hostfile import count, most_slots, read_hosts

if TYPE_CHECKING:
    from launcher.metrics import LauncherMetrics
    from launcher.run.job import TrainJob

ASKED = b"asked to stop\n"
"""Content of a user's stop file; that of a pod or a job that has to stop is empty."""

app = typer.Typer(
    name="launch",
    help="Run on many machines, and keep the run alive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[
    Path, typer.Option("--config", help="YAML of the run, or a name from `smdt configs`.")
]
DeepSpeedOption = Annotated[
    Path | None, typer.Option("--deepspeed_config", help="DeepSpeed's own JSON, or zero0 to zero3.")
]
Resume = Annotated[str, typer.Option(help="auto, never, or a checkpoint folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="section.key=value")]
HostfileOption = Annotated[Path, typer.Option("--hostfile", help="DeepSpeed's hostfile.")]
Include = Annotated[str, typer.Option(help="Slots to use, as DeepSpeed writes them: a@b:0,2.")]
Exclude = Annotated[str, typer.Option(help="Slots to leave out, as DeepSpeed writes them.")]
Env = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME", help="Variable to pass to all ranks.")
]
Address = Annotated[
    str | None, typer.Option("--master-addr", help="Rendezvous address, if not the first host's.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")]


@app.command()
def up(
    hostfile: HostfileOption,
    config: ConfigOption,
    overrides: Overrides = None,
    deepspeed_config: DeepSpeedOption = None,
    resume: Resume = "auto",
    include: Include = "",
    exclude: Exclude = "",
    env: Env = None,
    master_addr: Address = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Restarts in a row that bring no new checkpoint.")
    ] = 3,
    wait_seconds: Annotated[
        float,
        typer.Option(
            min=0, help="Wait before the first restart; doubles while restarts make no progress."
        ),
    ] = 10.0,
    stall_seconds: Annotated[
        float, typer.Option(min=1, help="Without a step, an evaluation, a checkpoint: it hangs.")
    ] = 1800.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command.")] = False,
) -> None:
    """Start a run on the hosts of a hostfile, and start it again until it is done."""
    from data_shards.base.names import is_variable
    from launcher.metrics import LauncherMetrics
    from launcher.run.command import ClusterLaunch, check_address, cluster_command
    from launcher.run.console import StatusLog
    from launcher.run.job import open_job
    from launcher.run.supervisor import (
        ENVIRONMENT,
        MODULE,
        Supervisor,
        SupervisorOptions,
        check_tools,
    )
    from launcher.run.variables import passed_variables, read_deepspeed_env

    hosts = read_hosts(hostfile, include, exclude)
    check_address(master_addr)
    names = env or []
    unset = [name for name in names if is_variable(name) and name not in os.environ]
    here = [name for name in names if name not in unset] if dry_run else names
    variables = passed_variables(here, os.environ)
    job = open_job(
        *(config, deepspeed_config, resume, overrides or []), count(hosts), most_slots(hosts)
    )
    shown = ClusterLaunch(
        module=MODULE,
        arguments=job.arguments(),
        hostfile=hostfile.absolute(),
        hosts=hosts,
        address=master_addr or next(iter(hosts)),
        port=29500,
        environment=job.folder.root.absolute() / ENVIRONMENT,
    )
    command = cluster_command(shown)  # refuses what no host would receive unchanged
    if dry_run:
        say_unchecked(job.check_local_inputs())
        say_unchecked(f"not checked here: --env {name} is not set in this shell" for name in unset)
        print(shlex.join(command))
        return
    job.check()
    print(shlex.join(command))
    check_tools()
    for line in job.examine_checkpoint():
        typer.echo(line, err=True)
    deepspeed_env = read_deepspeed_env()
    job.folder.create()
    metrics = LauncherMetrics(job.config.run.name)
    options = SupervisorOptions(
        hostfile=hostfile.absolute(),
        hosts=hosts,
        address=master_addr,
        variables=variables,
        deepspeed_env=deepspeed_env,
        max_restarts=max_restarts,
        wait_seconds=wait_seconds,
        stall_seconds=stall_seconds,
    )
    with exporter(job, metrics):
        Supervisor(job, options, metrics, StatusLog(job.folder.logs / "launcher.log")).run()


@app.command()
def check(
    hostfile: HostfileOption,
    config: ConfigOption,
    overrides: Overrides = None,
    deepspeed_config: DeepSpeedOption = None,
    include: Include = "",
    exclude: Exclude = "",
    env: Env = None,
    master_addr: Address = None,
    json_file: JsonOption = None,
) -> None:
    """Look whether every host is ready for a run."""
    from launcher.run.command import check_address
    from launcher.run.console import show_preflight
    from launcher.run.job import open_job
    from launcher.run.preflight import run_preflight
    from launcher.run.supervisor import check_tools
    from launcher.run.variables import passed_variables

    hosts = read_hosts(hostfile, include, exclude)
    check_address(master_addr)
    variables = passed_variables(env or [], os.environ)
    job = open_job(
        *(config, deepspeed_config, "auto", overrides or []), count(hosts), most_slots(hosts)
    )
    job.check()
    check_tools()
    job.folder.create()
    seen = run_preflight(job, hosts, variables, master_addr)
    show_preflight(seen, hosts)
    if json_file is not None:
        content = {
            "facts": {host: asdict(facts) for host, facts in seen.facts.items()},
            "findings": [asdict(finding) for finding in seen.findings],
        }
        write_atomic(json_file, (json.dumps(content, indent=2) + "\n").encode())
    ready = len(seen.passed(hosts))
    if ready < len(hosts):
        raise UserError(f"{ready} of {len(hosts)} hosts are ready; the table says what to do.")


@app.command()
def stop(config: ConfigOption, overrides: Overrides = None) -> None:
    """Ask a run to stop: all ranks finish their step and save."""
    from smdt.stages import config as configuration
    from smdt.training.checkpoints.run_folder import RunFolder
    from smdt.training.ranks.lease_holder import active_holder

    folder = RunFolder(configuration.load(config, overrides or []).run.out)
    if not folder.root.is_dir():
        raise UserError(
            f"The run folder {folder.root} does not exist here; stop the "
            "run on the host that has it."
        )
    running = (folder.read_state() or {}).get("status") == "running"
    if not running and active_holder(folder.lease) is None:
        raise UserError(f"The run in {folder.root} does not run.")
    write_atomic(folder.stop, ASKED)
    print(f"Asked the run in {folder.root} to stop; its launcher says when it has saved.")


@app.command()
def targets(
    hostfile: HostfileOption,
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="File for Prometheus' file_sd_configs.")],
    overrides: Overrides = None,
    include: Include = "",
    exclude: Exclude = "",
) -> None:
    """Write where Prometheus finds every rank of every host."""
    from launcher.hosts.targets import targets as entries
    from smdt.stages import config as configuration

    hosts = read_hosts(hostfile, include, exclude)
    loaded = configuration.load(config, overrides or [])
    telemetry = loaded.telemetry
    if not telemetry.metrics_port:
        raise InputError(
            f"configuration {config}: telemetry.metrics_port is {telemetry.metrics_port}, so the "
            "ports are known only when the ranks run; set one, or read the run's targets folder"
        )
    if telemetry.metrics_address.startswith("127."):
        raise InputError(
            f"configuration {config}: telemetry.metrics_address is {telemetry.metrics_address}, "
            "which no other host reaches; set 0.0.0.0, which is right on every host"
        )
    telemetry.check_ports(most_slots(hosts))
    labels = {"run": label_value(loaded.run.name), "stage": loaded.stage}
    if telemetry.tls is not None:
        labels["__scheme__"] = "https"
    content = entries(hosts, telemetry.metrics_port, labels)
    write_atomic(out, (json.dumps(content, indent=2) + "\n").encode())


Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
RanksPerNode = Annotated[int, typer.Option(min=1, help="Processes on each, one a GPU.")]
Restarts = Annotated[int, typer.Option(min=0, help="Failures in a row without a new checkpoint.")]
Notice = Annotated[int, typer.Option(min=1, help="Time that ranks have to save, in seconds.")]
ScriptOut = Annotated[Path, typer.Option(help="File to write.")]


@app.command()
def slurm(
    config: ConfigOption,
    nodes: Nodes,
    ranks_per_node: RanksPerNode,
    out: ScriptOut,
    overrides: Overrides = None,
    deepspeed_config: DeepSpeedOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of sbatch, as --option=--partition=gpu; repeatable."),
    ] = None,
    max_restarts: Restarts = 3,
    notice_seconds: Notice = 300,
) -> None:
    """Write a batch script for Slurm that queues again until the run is done.

    The script starts this interpreter in this folder, which the nodes have at the same paths; data
    and run folder may be where only they see them.
    """
    from launcher.run.job import open_job
    from launcher.schedulers.render import SchedulerJob, slurm_script

    ranks = nodes * ranks_per_node
    job = open_job(config, deepspeed_config, "auto", overrides or [], ranks, ranks_per_node)
    unchecked = job.check_local_inputs()
    try:
        job.folder.create()  # Slurm opens its log there before anything runs
    except InputError as error:
        unchecked.append(f"not made here: {error}")
    allocation = SchedulerJob(
        name=job.config.run.name,
        run=str(job.folder.root.absolute()),
        folder=str(Path.cwd()),
        arguments=job.arguments(),
        nodes=nodes,
        ranks=ranks_per_node,
        max_restarts=max_restarts,
        notice_seconds=notice_seconds,
    )
    write_atomic(out, slurm_script(allocation, option or []).encode())
    say_unchecked(unchecked)
    first = f"mkdir -p {shlex.quote(str(job.folder.logs.absolute()))} && " if unchecked else ""
    print(f"{first}sbatch {shlex.quote(str(out))}")


@app.command()
def k8s(
    config: ConfigOption,
    nodes: Nodes,
    ranks_per_node: RanksPerNode,
    image: Annotated[str, typer.Option(help="Container image with SMDT; see Dockerfile.")],
    claim: Annotated[str, typer.Option(help="Persistent volume claim, writable by all pods.")],
    out: ScriptOut,
    overrides: Overrides = None,
    deepspeed_config: DeepSpeedOption = None,
    mount: Annotated[str, typer.Option(help="Mount path of the claim in the pods.")] = "/data",
    folder: Annotated[
        str, typer.Option(help="Working directory of the ranks in the image.")
    ] = "/opt/smdt",
    python: Annotated[str, typer.Option(help="Interpreter in the image.")] = "python",
    max_restarts: Restarts = 3,
    notice_seconds: Notice = 300,
) -> None:
    """Write a JobSet for Kubernetes that starts again until the run is done.

    The configuration is read here and by the pods, which need it at the same path; shards and run
    folder may be where only the pods see them.
    """
    from launcher.run.job import open_job
    from launcher.schedulers.render import SchedulerJob, jobset

    ranks = nodes * ranks_per_node
    job = open_job(config, deepspeed_config, "auto", overrides or [], ranks, ranks_per_node)
    allocation = SchedulerJob(
        name=job.config.run.name,
        run=str(job.folder.root),
        folder=folder,
        arguments=job.arguments(),
        nodes=nodes,
        ranks=ranks_per_node,
        max_restarts=max_restarts,
        notice_seconds=notice_seconds,
    )
    text = jobset(allocation, image=image, python=python, claim=claim, mount=mount)
    write_atomic(out, text.encode())
    say_unchecked(
        [f"not checked here: {key} {path} is the pods'" for key, path in job.inputs.items()]
    )
    print(f"kubectl apply -f {shlex.quote(str(out))}")


def say_unchecked(sentences: Iterable[str]) -> None:
    """Print what a command has not checked, one line each, on stderr."""
    for sentence in sentences:
        print(sentence, file=sys.stderr)


def exporter(job: "TrainJob", metrics: "LauncherMetrics") -> AbstractContextManager[object]:
    """Return the launcher's metrics endpoint, one port below the ranks'."""
    return job.config.telemetry.serve(
        metrics.registry,
        metrics.labels,
        entry=f"{job.config.run.name}-launcher",
        run_targets=job.folder.targets,
        port_offset=-1,
    )
