"""What the store says of one run, whatever its state."""

from __future__ import annotations

import functools
from typing import Any

from lambda_hat.config import SAMPLE_SCHEMAS, SampleConfig
from lambda_hat.errors import LambdaHatError
from lambda_hat.omegaconf_support import build_dataclass, load_sample_config, schema_for
from lambda_hat.status import Studies, StudyFollower
from lambda_hat.status.find_run import RunPlace
from lambda_hat.store import run_files
from lambda_hat.store.layout import read_json_or_none, read_record


def config_of(place: RunPlace) -> SampleConfig | None:
    """The configuration in the run's folder, else the one in its pack; None where that cannot be read."""
    path = place.run_dir / "config.yaml"
    try:
        if run_files.has(path):
            return load_sample_config(path, run_files.read_bytes)
        follower = _follower_of(place)
        pack = None if follower is None else follower.log.pack_of.get(place.key)
        for entry in () if pack is None else read_json_or_none(pack.directory / "pack.json")["runs"]:
            if (entry["target_id"], entry["run_id"]) == place.key:
                schema = schema_for(SAMPLE_SCHEMAS, entry["config"]["name"], "name")
                return build_dataclass(schema, [("/".join(place.key), entry["config"])])
    except (LambdaHatError, KeyError, TypeError):
        pass
    return None


def analysis_of(place: RunPlace) -> dict[str, Any] | str | None:
    """The result of a run; a sentence where it cannot be read, None where there is none."""
    try:
        return read_record(place.run_dir / "analysis.json")
    except FileNotFoundError:
        return None
    except LambdaHatError as error:
        return str(error)


@functools.lru_cache(maxsize=1)
def _follower_of(place: RunPlace) -> StudyFollower | None:
    """The study that a run without an end belongs to, looked at once; None where there is none."""
    if place.store is None:
        return None
    for follower in Studies(place.store).current():
        follower.look()
        if follower.state_of(place.key) is not None:
            return follower
    return None


def state_without_end(place: RunPlace) -> str | None:
    """How a run that has not ended stands, in words; None where no study has such a run."""
    follower = _follower_of(place)
    return None if follower is None else follower.state_of(place.key)
