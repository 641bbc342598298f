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
    """A heading with its figures. The template adds the table, the failures or the configuration by `id`."""

    id: str
    title: str
    figures: Sequence[Drawn] = ()
    intro: str = ""


def render(material: Material, sections: Sequence[Section], missing: Sequence[str]) -> str:
    """Render the page as HTML. All text of configurations, reasons and logs is escaped.

    Args:
        material: what `collect.gather` has read.
        sections: those with figures. The table is added before them, failures and configuration after them.
        missing: sentences on what the report could not show.
    """
    # Imported late: a driver imports this package when it starts, and draws a page only when its study is over.
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
    some = "" if shown == runs else f"Shown are the {shown} runs with the worst verdicts, of {runs}. "
    words = (
        "Click a heading to sort, click the symbol beside it to filter, or type into the box to search. The column "
        "λ_t? compares an estimate with its exact value: agrees is within 3 standard errors; within_allowance is at "
        "most 5 % further off, which sgld, sghmc, sgnht and mclmc are allowed for the bias of their step; off is "
        "further still. T is 1 for chains in equilibrium. results/llc_runs.parquet has every column."
    )
    return Section("table", "Runs", intro=some + words)


def _failures_section(reasons: int) -> Section:
    some = f"Shown are the {MOST_REASONS} most frequent of {reasons} reasons. " if reasons > MOST_REASONS else ""
    return Section("failures", "Failures", intro=f"{some}To try just these again, add --rerun failed to the command.")
