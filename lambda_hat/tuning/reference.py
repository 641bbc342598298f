"""What estimates are held against: the exact value, or one long unbiased run, which is in the store like any other."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from lambda_hat.config import DlnBuild
from lambda_hat.id_utils import Run
from lambda_hat.tuning.objective import Row, is_decided
from lambda_hat.tuning.wanted import Look, Start, want_entry

LENGTHS = {"num_chains": 4, "num_draws": 5000, "num_burnin": 2000}
"""Of the long run: several times those of a run. Arbitrary."""
POSTERIOR = ("beta", "n_beta", "gamma", "prior_radius", "restrict")
"""The keys that decide the posterior, and so the value that is estimated."""
SHARE = 0.25
"""The reference's own standard error may be this share of the tolerance. Arbitrary."""


class Reference:
    """The value of one posterior.

    Args:
        start: Target and posterior; several searches share one reference if these are the same.
        sampler: Of the long run; None if there shall be none.
        tolerance: Relative error that the searches allow.

    Attributes:
        value: None until it is known.
        source: `exact`, or the id of the long run.
        lost: Why the value will never be known; None while it may be.
    """

    def __init__(self, start: Start, sampler: str | None, tolerance: float):
        self._start, self._sampler, self._tolerance = start, sampler, tolerance
        self.value: float | None = None
        self.source = ""
        self.lost: str | None = None

    @property
    def may_be_exact(self) -> bool:
        """Whether an exact value could be known; whether it is, only the row of a run tells."""
        build = self._start.build
        possible = build.target.data == "population" if isinstance(build, DlnBuild) else build.analytic
        return possible and self._start.cfg.restrict is None

    def offer(self, rows: Iterable[Row]) -> None:
        """Take the exact value from rows of runs of this posterior, if they have it."""
        for row in rows:
            if self.value is None and self.lost is None and row["status"] == "finished":
                exact = row["true_llc_t"]
                if exact is not None:
                    self._settle(exact, "exact")

    @functools.cached_property
    def runs(self) -> list[Run]:
        """The long run, and one twice as long, which takes its place if its verdict is not ok."""
        if self._sampler is None:
            return []
        return [want_entry(self._start, self._entry(factor)) for factor in (1, 2)]

    def needed(self, look: Look) -> list[Run]:
        """The run that has to be sampled next; none once the value is known or lost."""
        if self.value is not None or self.lost is not None:
            return []
        if self._sampler is None:
            self.lost = "its exact value is not known, and --reference none makes no other"
            return []
        why = ""
        for run in self.runs:
            (row,) = look([run])
            if not is_decided(row):
                return [run]
            if row["status"] != "finished":
                self.lost = f"its reference {run.run_id} has {row['status']}: {row['reason']}"
                return []
            self.offer([row])
            if self.value is not None:
                return []
            why = self._doubt(row)
            if not why:
                self._settle(row["llc_mean"], run.run_id)
                return []
        self.lost = f"its reference is not to be trusted, also at twice the length: {why}"
        return []

    def _doubt(self, row: Row) -> str:
        """Why a finished run is no reference; empty if it is one."""
        if row["verdict"] != "ok":
            return f"{row['verdict']}: {row['verdict_sentence']}"
        allowed = SHARE * self._tolerance
        if row["llc_std_error"] > allowed * abs(row["llc_mean"]):
            return f"its standard error is {row['llc_std_error'] / abs(row['llc_mean']):.1%}, above {allowed:.1%}"
        return ""

    def _settle(self, value: float, source: str) -> None:
        if value == 0:
            self.lost = "its value is 0, which no error is relative to"
            return
        self.value, self.source = value, source

    def _entry(self, factor: int) -> dict[str, Any]:
        lengths = {"num_draws": factor * LENGTHS["num_draws"], "num_burnin": factor * LENGTHS["num_burnin"]}
        kept = {key: value for key in POSTERIOR if (value := getattr(self._start.cfg, key)) is not None}
        overrides = {**LENGTHS, **lengths, **kept}
        return {"name": self._sampler, "overrides": overrides}
