"""How long the report of a thousand runs takes, and how large it is.

    python benchmarks/report.py [--quick] [--out DIR] [--keep DIR]

The store is made here: the files of real runs in names, formats and checks, with made-up numbers. The command is timed
as a user types it, imports included.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.made_up import finish, write_study  # noqa: E402
from benchmarks.measure import REPEAT, Spread, options, publish, table  # noqa: E402
from lambda_hat.workflow_config import compose_study  # noqa: E402

QUADRATICS = 62
MEGABYTE = 1e6


def seconds_of_report(folder: Path, experiments: Path) -> float:
    words = ["-m", "lambda_hat.entrypoints.cli", "report", "--store", str(folder / "runs")]
    words += ["--results", str(folder / "results"), "--experiments", str(experiments)]
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def section(folder: Path, quick: bool) -> str:
    if quick:
        experiments = write_study(folder, [1], others=[])
    else:
        experiments = write_study(folder, range(1, QUADRATICS + 1))
    study = compose_study(experiments)
    finish(study, failed=5, pending=3)
    seconds = [seconds_of_report(folder, experiments) for _ in range(1 if quick else REPEAT)]
    page = folder / "results" / "report.html"
    figures = list((folder / "results" / "figures").glob("*.png"))
    rows = [
        ["`lambda-hat report`, s", Spread.of(seconds), "at most 30 for 1,000 runs"],
        ["the page, MB", f"{page.stat().st_size / MEGABYTE:.2f}", "at most 10 for 1,000 runs"],
        ["its figures", len(figures), ""],
    ]
    head = f"## Report\n\n`python benchmarks/report.py`: {len(study.runs):,} runs."
    return f"{head}\n\n{table(['', 'median (least to most)', 'wanted'], rows)}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make store and report there, and leave them")
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
        publish("report", section(args.keep.absolute(), args.quick), args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        publish("report", section(Path(folder), args.quick), args.out)


if __name__ == "__main__":
    main()
