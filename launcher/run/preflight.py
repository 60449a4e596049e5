"""Requirements on every host before a launch: read over ssh, compared here.

The launcher's own Python, packages, code, files and data set are the measure of all hosts; their
accelerators are compared with those that the run began with.
"""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from data_shards.base.errors import InputError
from launcher.hosts.hostfile import Hosts
from launcher.hosts.probe import Facts, ProbeRequest, probe, token_file
from launcher.hosts.rendezvous import CALL_SECONDS
from launcher.hosts.ssh import HostResponse, call_hosts
from launcher.run.job import TrainJob
from smdt.config_file import find

PROBE_SECONDS = 120.0
"""After which a host has not answered; importing torch from slow storage takes a minute."""
CLOCK_SECONDS = 1.0
"""Largest clock difference of a host."""
CPU = "cpu"
"""Device of a host without accelerators."""


@dataclass(frozen=True)
class Finding:
    """A requirement that a host does not meet.

    Attributes:
        host: where.
        check: what was checked.
        found: what is there.
        fix: what to do.
        blocking: whether a launch cannot have this host.
    """

    host: str
    check: str
    found: str
    fix: str
    blocking: bool = True


@dataclass(frozen=True)
class PreflightReport:
    """Result of the check of all hosts.

    Attributes:
        facts: of the hosts that answered.
        findings: all that is not as it should be.
    """

    facts: Mapping[str, Facts]
    findings: Sequence[Finding]

    def passed(self, hosts: Hosts) -> dict[str, Sequence[int]]:
        """Return the hosts that a launch can have."""
        bad = {finding.host for finding in self.findings if finding.blocking}
        return {name: slots for name, slots in hosts.items() if name not in bad}


def run_preflight(
    job: TrainJob, hosts: Hosts, environment: Mapping[str, str], address: str | None
) -> PreflightReport:
    """Check all hosts.

    Args:
        job: what they are to train.
        hosts: their slots.
        environment: variables that the ranks will have; never shown.
        address: where the ranks are to meet; None for what the first host calls its own.

    Raises:
        InputError: the run folder cannot be written from here.
    """
    token = secrets.token_hex(8)
    question = _question(job, environment, token)
    file = token_file(job.folder.root, token)
    try:
        file.write_text(token)
    except OSError as error:
        raise InputError(f"run folder {job.folder.root}: {error.strerror}") from error
    try:
        questions = {
            host: ("probe", asdict(question) | {"metrics_ports": _metrics_ports(job, len(slots))})
            for host, slots in hosts.items()
        }
        answers = call_hosts(questions, PROBE_SECONDS)
        ours = probe(question)
    finally:
        file.unlink(missing_ok=True)
    facts = {host: Facts(**answer.content) for host, answer in answers.items() if answer.content}
    findings = compare_hosts(ours, hosts, answers, facts, job.folder.device())
    seen = PreflightReport(facts, findings)
    passed = seen.passed(hosts)
    return PreflightReport(facts, [*findings, *_meet(list(passed), facts, address, token)])


def rendezvous_address(facts: Facts, address: str | None) -> str:
    """Return where the ranks meet: as DeepSpeed does, the first address of the first host."""
    return address or (facts.addresses[0] if facts.addresses else facts.own_address)


def compare_hosts(
    ours: Facts,
    hosts: Hosts,
    answers: Mapping[str, HostResponse],
    facts: Mapping[str, Facts],
    began_with: str = CPU,
) -> list[Finding]:
    """Compare the hosts' answers with this machine, and with what the run started with.

    Args:
        ours: of this machine.
        hosts: their slots.
        answers: of each host.
        facts: of the hosts that answered.
        began_with: kind of device that the run has trained on, `cpu` before it has on another.
    """
    findings = []
    kind = wanted_device(began_with, hosts, facts)
    for host, slots in hosts.items():
        answer = answers[host]
        if host not in facts:
            findings.append(_unreachable(host, answer.error))
            continue
        findings += _same_software(host, ours, facts[host])
        findings += _same_data(host, ours, facts[host])
        findings += _devices(host, slots, kind, facts[host])
        findings += _network(host, len(hosts), facts[host])
        skew_seconds = answer.skew_seconds
        if skew_seconds is not None and abs(skew_seconds) > CLOCK_SECONDS:
            found = f"{abs(skew_seconds):.1f} s {'ahead' if skew_seconds > 0 else 'behind'}"
            findings.append(Finding(host, "clock", found, "let chrony or ntpd set it"))
    return findings


def wanted_device(began_with: str, hosts: Hosts, facts: Mapping[str, Facts]) -> str:
    """Return the kind of device that all hosts must have.

    An accelerator that the run has trained on; else the one that most slots have; else the CPU. So
    a host that has lost its accelerators is refused, also if it is the first one.
    """
    if began_with != CPU:
        return began_with
    slots: Counter[str] = Counter()
    for host, theirs in facts.items():
        if theirs.device != CPU:
            slots[theirs.device] += len(hosts[host])
    return slots.most_common(1)[0][0] if slots else CPU


def _unreachable(host: str, error: str) -> Finding:
    if "launcher" in error or "No such file" in error or "not found" in error:
        fix = "put this environment and this folder at the same paths there, as on shared storage"
        return Finding(host, "environment", error, fix)
    fix = f"make `ssh {host} true` work without a password from here"
    return Finding(host, "ssh", error, fix)


def _same_software(host: str, ours: Facts, theirs: Facts) -> Iterator[Finding]:
    for name, version in ours.versions.items():
        found = theirs.versions.get(name, "missing")
        if found != version:
            fix = f"install {name} {version}, as the launcher has; requirements.lock names it"
            yield Finding(host, "versions", f"{name} {found}", fix)
    if theirs.code != ours.code:
        fix = "update SMDT there: git pull, or the same image"
        yield Finding(host, "code", "another SMDT than the launcher's", fix)


def _same_data(host: str, ours: Facts, theirs: Facts) -> Iterator[Finding]:
    same = "copy the launcher's, or keep it on shared storage"
    if theirs.files_error or theirs.files != ours.files:
        found = theirs.files_error or "other contents than the launcher's"
        yield Finding(host, "configuration", found, same)
    if theirs.manifest_error:
        fix = "make data.shards readable there; credentials go with --env NAME"
        yield Finding(host, "shards", theirs.manifest_error, fix)
    elif theirs.manifest != ours.manifest:
        yield Finding(host, "shards", "another data set than the launcher's", same)
    if theirs.folder_error:
        fix = "set run.out to a folder on storage that all hosts mount at the same path"
        yield Finding(host, "run folder", theirs.folder_error, fix)


def _devices(host: str, slots: Sequence[int], kind: str, theirs: Facts) -> Iterator[Finding]:
    if theirs.device != kind:
        fix = f"look why it has no {kind}, or use hosts of one kind; --exclude leaves one out"
        yield Finding(host, "accelerators", f"{theirs.device}, where the run needs {kind}", fix)
    elif max(slots) >= theirs.devices:
        found = f"{theirs.devices} {'cores' if kind == CPU else kind}, slots up to {max(slots)}"
        fix = f"write slots={theirs.devices} into the hostfile, or look why they are gone"
        yield Finding(host, "accelerators", found, fix, blocking=kind != CPU)


def _network(host: str, hosts: int, theirs: Facts) -> Iterator[Finding]:
    if theirs.taken_ports:
        ports = ", ".join(map(str, theirs.taken_ports))
        fix = "none needed, free ports are taken instead; telemetry.metrics_port sets others"
        yield Finding(host, "metrics ports", f"{ports} in use", fix, blocking=False)
    local = not theirs.own_address or theirs.own_address.startswith("127.")
    if hosts > 1 and local:
        found = f"its own name is {theirs.own_address or 'unknown'} to it"
        fix = (
            "give its name its network address in /etc/hosts, "
            "or export GLOO_SOCKET_IFNAME and pass it with --env GLOO_SOCKET_IFNAME"
        )
        yield Finding(host, "name", found, fix, blocking=False)


def _meet(
    hosts: Sequence[str], facts: Mapping[str, Facts], address: str | None, token: str
) -> list[Finding]:
    """Let every other host call the first one, where the ranks will meet."""
    if len(hosts) < 2:
        return []
    first, *others = hosts
    port = facts[first].port
    where = rendezvous_address(facts[first], address)
    listener = {"port": port, "token": token, "calls": len(others), "seconds": 3 * CALL_SECONDS}
    caller = {"address": where, "port": port, "token": token}
    questions = {first: ("listen", listener), **dict.fromkeys(others, ("call", caller))}
    answers = call_hosts(questions, 6 * CALL_SECONDS)
    reasons = {host: answer.content.get("error", answer.error) for host, answer in answers.items()}
    fix = f"open the hosts' ports to each other, or give another address of {first}: --master-addr"
    return [
        Finding(host, "meeting", f"{where}:{port}: {reasons[host]}", fix)
        for host in hosts
        if reasons[host]
    ]


def _question(job: TrainJob, environment: Mapping[str, str], token: str) -> ProbeRequest:
    files = [job.file] if job.deepspeed_file is None else [job.file, job.deepspeed_file]
    return ProbeRequest(
        files=[str(find(file)) for file in files],
        shards=job.config.data.shards,
        run_folder=str(job.folder.root.absolute()),
        token=token,
        environment=dict(environment),
    )


def _metrics_ports(job: TrainJob, ranks: int) -> list[int]:
    base = job.config.telemetry.metrics_port
    return [base + rank for rank in range(ranks)] if base else []
