"""The launcher's commands on a host: `python -m launcher.hosts.remote VERB`, JSON in, JSON out.

The first line is the host's clock, said before anything slow; the last is the answer.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

JSON = dict[str, Any]


def _probe(question: JSON) -> JSON:
    from launcher.hosts.probe import ProbeRequest, probe

    return asdict(probe(ProbeRequest(**question)))


def _sweep(question: JSON) -> JSON:
    from launcher.hosts.sweep import sweep

    return asdict(sweep(**question))


def _listen(question: JSON) -> JSON:
    from launcher.hosts.rendezvous import serve_token

    try:
        return {"calls": serve_token(**question), "error": ""}
    except OSError as error:
        return {"calls": 0, "error": error.strerror}


def _call(question: JSON) -> JSON:
    from launcher.hosts.rendezvous import check_reachable

    return {"error": check_reachable(**question)}


VERBS: Mapping[str, Callable[[JSON], JSON]] = {
    "probe": _probe,
    "sweep": _sweep,
    "listen": _listen,
    "call": _call,
}


def main() -> None:
    """Answer one question."""
    print(json.dumps({"clock": time.time()}), flush=True)
    answer = VERBS[sys.argv[1]](json.load(sys.stdin))
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
