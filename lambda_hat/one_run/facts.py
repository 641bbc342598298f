"""What the store knows of one run, whatever its state."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lambda_hat.config import SAMPLE_SCHEMAS, BuildConfig, SampleConfig
from lambda_hat.errors import LambdaHatError
from lambda_hat.integrity import Digests
from lambda_hat.omegaconf_support import build_dataclass, load_build_config, load_sample_config, schema_for
from lambda_hat.one_run.find import RunPlace
from lambda_hat.status import Studies, StudyFollower
from lambda_hat.store import read_json_or_none, read_record


def config_of(place: RunPlace) -> SampleConfig | None:
    """What the run's folder says, or for a run without one its pack."""
    path = place.run_dir / "config.yaml"
    if path.is_file():
        try:
            return load_sample_config(path)
        except LambdaHatError:
            return None
    follower = _follower_of(place)
    pack = None if follower is None else follower.pack_of(place.key)
    content = None if pack is None else read_json_or_none(pack / "pack.json")
    runs = content.get("runs") if isinstance(content, dict) else None
    for entry in runs if isinstance(runs, list) else ():
        if isinstance(entry, dict) and (entry.get("target_id"), entry.get("run_id")) == place.key:
            return _config_in(entry)
    return None


def _config_in(entry: dict[str, Any]) -> SampleConfig | None:
    try:
        schema = schema_for(SAMPLE_SCHEMAS, entry["config"]["name"], "name")
        return build_dataclass(schema, [(f"{entry['target_id']}/{entry['run_id']}", entry["config"])])
    except (LambdaHatError, KeyError, TypeError):
        return None


def build_of(place: RunPlace) -> BuildConfig | None:
    """The configuration of its target; None where that cannot be read."""
    try:
        return load_build_config(place.target_dir / "config.yaml")
    except (LambdaHatError, OSError):
        return None


def analysis_of(place: RunPlace) -> dict[str, Any] | str | None:
    """The result; a sentence where it cannot be read, None where there is none."""
    try:
        return read_record(place.run_dir / "analysis.json")
    except FileNotFoundError:
        return None
    except LambdaHatError as error:
        return str(error)


@functools.lru_cache(maxsize=1)
def _follower_of(place: RunPlace) -> StudyFollower | None:
    """The study that a run without an end belongs to, after a look at it; None where there is none."""
    if place.store is None:
        return None
    for follower in Studies(place.store).current():
        follower.look()
        if follower.state_of(place.key) is not None:
            return follower
    return None


def state_without_end(place: RunPlace) -> str | None:
    """How a run that is neither finished nor failed stands, in words; None where no study knows."""
    follower = _follower_of(place)
    return None if follower is None else follower.state_of(place.key)


def is_whole(trace: Path, analysis: dict[str, Any]) -> bool:
    """Whether a run's `trace.nc` is the one that its record vouches for. Raises OSError."""
    files = analysis.get("files")
    entry = files.get("trace.nc") if isinstance(files, dict) else None
    return isinstance(entry, dict) and (entry.get("bytes"), entry.get("sha256")) == Digests()(trace)


def deaths_of(run_dir: Path) -> list[dict[str, Any]]:
    """The deaths of ranks that sampled a run."""
    content = read_json_or_none(run_dir / "deaths.json")
    return [death for death in content if isinstance(death, dict)] if isinstance(content, list) else []
