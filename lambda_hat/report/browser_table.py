"""The study's table for a browser: sorted, filtered and searched there, without a network."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from lambda_hat.estimate.verdict import place_of
from lambda_hat.report.closing import agreement
from lambda_hat.report.drawing import setting_labels
from lambda_hat.report.foreign import import_itables

MOST_ROWS = 10_000
"""Most rows of the table, some two megabytes."""
DIGITS = 4
TABLE_ID = "runs"
LONG = ("target", "setting", "run", "reason")
"""Columns of long texts, which are cut off."""
FEW = ("target", "sampler", "verdict", "λ_t?", "site")
"""Columns of few distinct values. Their filter is a list to choose from."""
NUMBERS = {
    "step": "step",
    "λ̂": "llc_mean",
    "± s.e.": "llc_std_error",
    "λ_t": "true_llc_t",
    "λ": "true_llc",
    "rel. error": "rel_error",
    "rel. to λ": "rel_error_llc",
    "R-hat": "rhat_max",
    "bulk ESS": "ess_bulk_min",
    "acceptance": "acceptance",
    "T": "temperature",
    "degree": "degree",
    "n": "n",
    "dim": "dim",
    "β": "beta",
    "γ": "gamma",
    "full gradients": "fge",
    "seconds": "seconds_sample",
}
ORDER = (
    "target", "step", "sampler", "setting", "verdict", "λ̂", "± s.e.", "λ_t", "λ_t?", "rel. error", "λ",
    "rel. to λ", "R-hat", "bulk ESS", "acceptance", "T", "degree", "n", "dim", "β", "γ", "full gradients", "seconds",
    "site", "run", "reason",
)  # fmt: skip
_MARK = "function (cell, data) { cell.dataset.value = data; }"
_WHOLE = "function (cell) { cell.title = cell.textContent; }"
"""Shows the whole text under the pointer where the column cuts it off."""
_NUMBER = """function (data, type) {
  const none = data === null || Number.isNaN(data);
  return type === 'sort' ? (none ? -Infinity : data) : (none ? '' : data);
}"""


def view_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that a person looks at, rounded to DIGITS digits.

    Columns without any value are left out. Of more than MOST_ROWS runs those with the worst verdicts stay.
    """
    frame = frame.reset_index(drop=True)
    verdict = frame.loc[:, "verdict"].where(frame["status"] == "finished", frame["status"]).fillna("")
    setting = pd.Series(
        [label.partition(", ")[2] for label in setting_labels(frame)] if len(frame) else [], dtype=object
    )
    agrees = pd.Series([agreement(row) or "" for row in _agreement_rows(frame)], dtype=object)
    reason = frame["reason"].where(frame["status"] != "finished", frame["verdict_sentence"]).fillna("")
    columns: dict[str, Any] = {
        "target": frame["target"].fillna(""),
        "sampler": frame["sampler"],
        "setting": setting,
        "verdict": verdict,
        "λ_t?": agrees,
        "site": frame["site"].fillna("") if len(set(frame["site"].dropna())) > 1 else "",
        "run": frame["target_id"] + "/" + frame["run_id"],
        "reason": reason,
    }
    columns |= {name: frame[source].astype(float).map(_rounded) for name, source in NUMBERS.items()}
    view = pd.DataFrame({name: columns[name] for name in ORDER})
    if len(view) > MOST_ROWS:
        worst = verdict.map(place_of).astype(int).sort_values(kind="stable").index[:MOST_ROWS]
        view = view.loc[sorted(worst)]
    kept = ("λ̂", "± s.e.", "verdict")
    empty = [name for name, column in view.items() if _says_nothing(column) and name not in kept]
    return view.drop(columns=empty)


def assets() -> str:
    """The script and style of DataTables, as HTML for the head of a page. They come with itables."""
    import_itables()
    from itables.javascript import generate_init_offline_itables_html
    from itables.utils import find_package_file

    return generate_init_offline_itables_html(find_package_file("html/dt_bundle.js"))


def interactive(view: pd.DataFrame) -> str:
    """The table of `view_of` as HTML. Every text in it is escaped."""
    itables = import_itables()
    from itables import JavascriptFunction

    def places(names: tuple[str, ...] | list[str]) -> list[int]:
        return [place for place, name in enumerate(view.columns) if name in names]

    numbers = [name for name in view.columns if name in NUMBERS]
    definitions: list[dict[str, Any]] = [
        {"targets": places(numbers), "render": JavascriptFunction(_NUMBER)},
        {"targets": places(["verdict", "λ_t?"]), "createdCell": JavascriptFunction(_MARK)},
        {"targets": places(list(LONG)), "createdCell": JavascriptFunction(_WHOLE), "className": "long"},
        {"targets": places(list(FEW)), "columnControl": [["searchList"]]},
    ]
    return itables.to_html_datatable(
        view,
        table_id=TABLE_ID,
        connected=False,
        display_logo_when_loading=False,
        allow_html=False,
        showIndex=False,
        maxBytes=0,
        maxRows=0,
        maxColumns=0,
        classes="display compact nowrap",
        style="width:100%;margin:0;caption-side:bottom",
        text_in_header_can_be_selected=False,
        layout={"topStart": "pageLength", "topEnd": "search", "bottomStart": "info", "bottomEnd": "paging"},
        lengthMenu=[10, 25, 100, 1000],
        pageLength=25,
        scrollX=True,
        deferRender=True,
        columnControl=["searchDropdown"],
        columnDefs=[definition for definition in definitions if definition["targets"]],
    )


def _agreement_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    keys = ["sampler", "true_llc_t", "llc_mean", "llc_std_error"]
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.loc[:, keys].to_dict("records")
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value


def _says_nothing(column: pd.Series) -> bool:
    return bool(column.isna().all() or (column == "").all())
