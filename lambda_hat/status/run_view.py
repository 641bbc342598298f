"""One run on one screen."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.config.common import flat
from lambda_hat.report.closing import agreement
from lambda_hat.status.find_run import RunPlace, build_of
from lambda_hat.status.run_facts import analysis_of, config_of, state_without_end
from lambda_hat.status.running_estimates import CHAIN_COLOURS, DAMAGED_TRACE, EXACT_COLOUR, plot_running, running_llc
from lambda_hat.status.terminal import duration, moment, printable, printable_lines
from lambda_hat.store import run_files
from lambda_hat.store.checksums import OBSERVED
from lambda_hat.store.layout import deaths_of, file_entry, read_json_or_none

TRACEBACK_LINES = 15
TEMPERATURE_PARTS = {"growth": "growth of the loss", "localisation": "localisation"}
ALONG = {"degree": "degree", "distance from w_star": "distance", "nβ² Var[L]": "llc_variance"}
"""Numbers along the draws: how fast the loss grows, how far the chains went, and λ from the variance of the loss."""
NOT_SHOWN = ("target_id", "name", "format")
"""Keys of a configuration that other lines show."""
EXACT = {"true_llc_t": "λ_t", "true_llc": "λ"}
AGREEMENT_WORDS = {
    "agrees": (", which agrees", "not bold green"),
    "within_allowance": (", which is missed by no more than its step size may bias it", "not bold yellow"),
    "off": (", which is off", "not bold red"),
}
"""Words and style of what `agreement` returns."""


def view(place: RunPlace, console: Console) -> Iterator[RenderableType]:
    """What to print of one run."""
    cfg, build = config_of(place), build_of(place.target_dir)
    analysis, error = analysis_of(place), read_json_or_none(place.run_dir / "error.json")
    facts = Table.grid(padding=(0, 1))
    facts.add_column(no_wrap=True, min_width=9, style="bold")
    facts.add_column(overflow="fold")
    for name, text in _facts(place, cfg, build, analysis, error if isinstance(error, dict) else None):
        facts.add_row(name, text)
    yield facts
    if isinstance(analysis, dict):
        yield from _plot(place.run_dir / "trace.nc", analysis, console)


def _facts(
    place: RunPlace,
    cfg: SampleConfig | None,
    build: BuildConfig | None,
    analysis: dict[str, Any] | str | None,
    error: dict[str, Any] | None,
) -> Iterator[tuple[str, Text]]:
    yield "run", Text(place.run_id, style="bold")
    yield "target", Text(printable(f"{place.target_id}" + (f" ({build.label})" if build else "")))
    if place.run_dir.is_dir() or not run_files.is_there(place.run_dir):
        yield "folder", Text(printable(str(place.run_dir)))
    else:
        yield "archive", Text(printable(f"{place.target_dir / run_files.ARCHIVE}, {place.run_id}/"))
    if cfg is not None:
        yield from _config_rows(cfg)
    if isinstance(analysis, dict):
        yield from _result_rows(analysis)
    elif analysis is not None:
        yield "result", Text(f"cannot be read: {printable(analysis)}; lambda-hat verify sets it aside", style="red")
    elif error is not None:
        yield from _error_rows(error)
    else:
        state = state_without_end(place) or "waiting: not sampled yet"
        yield "state", Text(printable(state), style="cyan" if state.startswith("running") else "yellow")
    deaths = deaths_of(place.run_dir)
    if deaths:
        who = "a rank" if len(deaths) == 1 else f"{len(deaths)} ranks"
        yield "deaths", Text(f"{who} died while sampling it; lambda-hat logs says more", style="yellow")
    if cfg is not None:
        yield _default_row(cfg)


def _config_rows(cfg: SampleConfig) -> Iterator[tuple[str, Text]]:
    name = "changed"
    for key, value, default in _values(cfg):
        if value != default:
            yield name, Text.assemble(f"{key} = {_shown(value)}", (f"   (default {_shown(default)})", "dim"))
            name = ""
    if name:
        yield name, Text("nothing: every value is the default")


def _default_row(cfg: SampleConfig) -> tuple[str, Text]:
    others = (f"{key} = {_shown(value)}" for key, value, default in _values(cfg) if value == default)
    return "defaults", Text(printable(", ".join(others)), style="dim")


def _values(cfg: SampleConfig) -> list[tuple[str, Any, Any]]:
    """Key, value, and the sampler's default."""
    defaults = dict(flat(type(cfg)()))
    return [(key, value, defaults[key]) for key, value in flat(cfg) if key not in NOT_SHOWN]


def _result_rows(analysis: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    estimate = Text(f"{_number(analysis.get('llc_mean'))} ± {_number(analysis.get('llc_std_error'))}", style="bold")
    known = [f"{name} = {_number(analysis[key])}" for key, name in EXACT.items() if analysis.get(key) is not None]
    known_all = all(_is_number(analysis.get(key)) for key in ("true_llc_t", "llc_mean", "llc_std_error"))
    judged = agreement(analysis) if known_all and "sampler" in analysis else None
    estimate.append(f"   exact: {', '.join(known)}" if known else "   no exact value is known", style="not bold")
    if judged is not None:
        estimate.append(*AGREEMENT_WORDS[judged])
    yield "λ̂", estimate
    verdict = str(analysis.get("verdict"))
    style = "green" if verdict == "ok" else "red" if verdict == "diverged" else "yellow"
    yield "verdict", Text.assemble((printable(verdict), style), f": {printable(str(analysis.get('verdict_sentence')))}")
    chains = analysis.get("llc_per_chain")
    if isinstance(chains, list):
        # Each in the colour of its line below.
        colours = itertools.cycle(CHAIN_COLOURS)
        yield "chains", Text(", ").join(Text(_number(chain), style=next(colours)) for chain in chains)
    mixing = {"R-hat": "rhat_max", "bulk ESS": "ess_bulk_min", "tail ESS": "ess_tail_min"}
    mixing |= {"acceptance": "acceptance", "MALA acceptance": "mala_acceptance"}
    told = [f"{name} {_number(analysis[key])}" for name, key in mixing.items() if analysis.get(key) is not None]
    yield "mixing", Text(", ".join(told))
    yield from _temperature_rows(analysis)
    if analysis.get("singular_fluctuation") is not None:
        error = _number(analysis.get("singular_fluctuation_std_error"))
        yield "ν̂", Text(f"{_number(analysis['singular_fluctuation'])} ± {error}, WAIC {_number(analysis.get('waic'))}")
    watched = analysis.get("observed")
    for name, found in watched.items() if isinstance(watched, dict) else ():
        yield "observed", Text(f"{printable(str(name))}: {_observed(found)}")
    steps = analysis.get("step_size")
    if isinstance(steps, list) and steps:
        yield "step size", Text(", ".join(dict.fromkeys(map(_number, steps))))
    posterior = ("n", "dim", "n_beta", "beta", "gamma", "loss_at_w_star")
    yield "posterior", Text(", ".join(f"{key} = {_number(analysis.get(key))}" for key in posterior))
    notes = analysis.get("notes")
    for note in notes if isinstance(notes, list) else ():
        yield "note", Text(printable(str(note)), style="yellow")
    yield "seconds", Text(_seconds(analysis))
    yield "where", Text(printable(_where(analysis)))


def _temperature_rows(analysis: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    """Whether the chains are as hot as their posterior, and how the loss behaves along them."""
    if _is_number(analysis.get("temperature")):
        error = _number(analysis.get("temperature_std_error"))
        parts = [f"{_number(analysis.get(key))} {what}" for key, what in TEMPERATURE_PARTS.items()]
        yield (
            "T",
            Text(f"{_number(analysis['temperature'])} ± {error} (1 in equilibrium): ({' + '.join(parts)}) / dim"),
        )
    told = [f"{name} {_number(analysis[key])}" for name, key in ALONG.items() if _is_number(analysis.get(key))]
    if told:
        yield "along", Text(", ".join(told))


def _seconds(analysis: dict[str, Any]) -> str:
    parts = []
    for key, what in (("seconds_total", "in all"), ("seconds_compile", "compiling"), ("seconds_sample", "sampling")):
        if _is_number(analysis.get(key)):
            parts.append(f"{duration(analysis[key])} {what}")
    gradients = analysis.get("num_gradients")
    return ", ".join([*parts, *([f"{gradients:,} gradients"] if isinstance(gradients, int) else [])])


def _where(record: dict[str, Any]) -> str:
    words = [f"rank {record['rank']} of {record.get('pack_id')} on" if "rank" in record else "on"]
    words.append(f"{record.get('host')},")
    if "cores" in record:
        words.append(f"{record['cores']} {'core' if record['cores'] == 1 else 'cores'} of")
    words.append(f"{record.get('backend', 'unknown')}")
    if record.get("device") not in (None, record.get("backend")):
        words.append(f"({record.get('device')})")
    began = record.get("started", record.get("time"))
    when = f", {moment(began, time.time())}" if _is_number(began) else ""
    return " ".join(words) + when


def _error_rows(error: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    yield "failed", Text(printable(f"{error.get('type')}: {error.get('message')}"), style="red")
    if "host" in error:
        yield "where", Text(printable(_where(error)))
    traceback = error.get("traceback")
    if isinstance(traceback, str):
        lines = printable_lines(traceback)
        more = ["..."] if len(lines) > TRACEBACK_LINES else []
        yield "traceback", Text("\n".join([*more, *lines[-TRACEBACK_LINES:]]), style="dim")


def _plot(trace: Path, analysis: dict[str, Any], console: Console) -> Iterator[RenderableType]:
    try:
        files = analysis.get("files")
        content = run_files.read_bytes(trace)
        if not isinstance(files, dict) or files.get("trace.nc") != file_entry(content):
            raise ValueError("damaged: its checksum does not fit; lambda-hat verify sets it aside")
        running = running_llc(content)
    except DAMAGED_TRACE as error:
        yield Text(f"\n{trace}: cannot be drawn: {printable(str(error))}", style="yellow")
        return
    known = next((key for key in EXACT if _is_number(analysis.get(key))), None)
    exact = None if known is None else analysis[known]
    coloured = console.is_terminal and console.color_system is not None
    picture = plot_running(running, exact, width=min(console.width, 100), coloured=coloured)
    if picture:
        title = Text("\nrunning λ̂ of every chain", style="bold")
        if known is not None:
            title.append(f", and the exact {EXACT[known]} = {exact:.4g}", style=EXACT_COLOUR)
        yield title
        yield Text.from_ansi(picture)


def _observed(found: Any) -> str:
    """What the analysis says of an observable."""
    if not isinstance(found, dict):
        return "?"
    if "shape" in found:
        return f"{printable(str(found['shape']))} values per draw, in {OBSERVED}"
    number = {key: _number(value) for key, value in found.items()}
    words = f"mean {number.get('mean')} ± {number.get('std_error')}, {number.get('at_w_star')} at w_star"
    return f"λ̂ {number['llc']} ± {number.get('llc_std_error')}, {words}" if "llc" in number else words


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(map(printable, value))
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < float("inf")


def _number(value: Any) -> str:
    if not _is_number(value):
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
