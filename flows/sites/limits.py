"""What a queue of PBS takes at most: packs that it will refuse are refused before targets have been built for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flows.sites.scheduler import Pbs
from flows.sites.site_schemas import PbsSite, asked_for, parse_walltime
from lambda_hat.errors import LambdaHatError, SchedulerError

SIZE = re.compile(r"(\d+)([kmgtp]?)[bw]?", re.IGNORECASE)


def check_limits(site: PbsSite, pbs: Pbs) -> None:
    """Refuse a block of packs that asks for more than `resources_max` of its queue or server.

    Raises SchedulerError. A server that does not tell its limits refuses by itself, when the block is submitted.
    """
    asks = {
        "ncpus": site.nodes_per_block * site.chunk_cores,
        "nodect": site.nodes_per_block,
        "ngpus": site.nodes_per_block * site.gpus_per_node,
        "mem": site.nodes_per_block * (site.mem_per_node or 0) * 2**30,
        "walltime": site.walltime_seconds,
    }
    for where, limits in _limits(site, pbs):
        for resource, most in limits.items():
            number = _amount(resource, str(most))
            if number is not None and asks.get(resource, 0) > number:
                raise SchedulerError(
                    f"PBS would refuse the block of packs (Job violates queue and/or server resource limits): {where} "
                    f"takes {resource}={most} at most, and the block asks for {asked_for(site, 'packs')}"
                )


def _limits(site: PbsSite, pbs: Pbs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        servers = pbs.details(["-Bf"], "Server")
        default = next((server.get("default_queue") for server in servers.values()), None)
        queue = site.queue or default
        queues = pbs.details(["-Qf", str(queue)], "Queue") if queue else {}
    except LambdaHatError:
        return
    for what, found in (("queue", queues), ("server", servers)):
        for name, attributes in found.items():
            limits = attributes.get("resources_max")
            if isinstance(limits, dict):
                yield f"{what} {name}", limits


def _amount(resource: str, most: str) -> float | None:
    """A limit as a number; None where it is of no kind that is known here."""
    if resource == "walltime":
        return parse_walltime("resources_max.walltime", most)
    size = SIZE.fullmatch(most)
    if size is None:
        return None
    return int(size[1]) * 2.0 ** (10 * " kmgtp".index(size[2].lower() or " "))
