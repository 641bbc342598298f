"""The page: one file with everything in it, which opens without a network."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from lambda_hat.report import browser_table, provenance
from lambda_hat.report.collect import Material
from lambda_hat.report.drawing import Drawn
from lambda_hat.report.failures import MOST_REASONS

TEMPLATE = "page.html"
TITLE = "Local Learning Coefficients"


@dataclass(frozen=True)
class Section:
    """A heading with its figures; the template knows what else belongs under `id`."""

    id: str
    title: str
    figures: Sequence[Drawn] = ()
    intro: str = ""


def render(material: Material, sections: Sequence[Section], missing: Sequence[str]) -> str:
    """The page as HTML. All text of configurations, reasons and logs is escaped.

    sections: those with figures; the table before them, and failures and configuration after them, are added here.
    """
    # Only now: a driver that imports this package draws no page until its study is over.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = environment.from_string((resources.files("lambda_hat.report") / TEMPLATE).read_text(encoding="utf-8"))
    frame = material.frame
    view = browser_table.view_of(frame)
    shown = [*([_table_section(len(view), len(frame))] if len(view) else []), *sections]
    if material.failures:
        shown.append(_failures_section(len(material.failures)))
    shown.append(Section("configuration", "Versions and configuration"))
    finished = frame[frame["status"] == "finished"]
    return template.render(
        title=TITLE,
        store=str(material.store.root),
        made=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        num_targets=frame["target_id"].nunique(),
        statuses=material.statuses,
        verdicts=material.verdicts,
        agreements=material.agreements,
        exact=sum(material.agreements.values()),
        missing=list(missing),
        sections=shown,
        assets=Markup(browser_table.assets()) if len(view) else "",
        table=Markup(browser_table.interactive(view)) if len(view) else "",
        failures=material.failures[:MOST_REASONS],
        computed_by=provenance.computed_by(finished["run_dir"]),
        made_by=provenance.made_by(),
        settings=provenance.settings_of(frame),
        targets=provenance.targets_of(frame),
    )


def _table_section(shown: int, runs: int) -> Section:
    some = "" if shown == runs else f"The {shown} runs with the worst verdicts, of {runs}. "
    words = (
        "Click a heading to sort, the symbol beside it to filter, and type into the box to search. λ_t? says whether "
        "an estimate agrees with its exact value within 3 standard errors, or only within the 5 % more that sgld, "
        "sghmc, sgnht and mclmc are allowed for their step. T is 1 for chains in equilibrium. "
        "results/llc_runs.parquet has every column."
    )
    return Section("table", "Runs", intro=some + words)


def _failures_section(reasons: int) -> Section:
    some = f"The {MOST_REASONS} most frequent of {reasons} reasons. " if reasons > MOST_REASONS else ""
    return Section(
        "failures", "Failures", intro=f"{some}The study's command with --rerun failed tries just these again."
    )
