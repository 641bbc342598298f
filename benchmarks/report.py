"""How long the report of a thousand runs takes, and how large it is, before and after `lambda-hat compact`.

    python benchmarks/report.py [--quick] [--out DIR] [--keep DIR]

The store is made here: the files of real runs in names, formats and checks, with made-up numbers. The command is timed
as a user types it, imports included.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.made_up import finish, write_study  # noqa: E402
from benchmarks.measure import REPEAT, Spread, alternate, options, publish, table  # noqa: E402
from lambda_hat.workflow_config import compose_study  # noqa: E402

QUADRATICS = 62
MEGABYTE = 1e6


def seconds_of(command: str, folder: Path, *words: str) -> float:
    """What a command of `lambda-hat` takes on the store in `folder`."""
    line = [sys.executable, "-m", "lambda_hat.entrypoints.cli", command, "--store", str(folder / "runs"), *words]
    begun = time.perf_counter()
    subprocess.run(line, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def takes(folder: Path) -> tuple[int, float]:
    """Files and folders of the targets and their runs, and megabytes of the disk."""
    found = list((folder / "runs" / "targets").rglob("*"))
    return len(found), sum(path.stat().st_blocks for path in found) * 512 / MEGABYTE


def section(folder: Path, quick: bool) -> str:
    if quick:
        experiments = write_study(folder, [1], others=[])
    else:
        experiments = write_study(folder, range(1, QUADRATICS + 1))
    study = compose_study(experiments)
    finish(study, failed=5, pending=3)
    compacted = folder / "compacted"
    shutil.copytree(folder / "runs", compacted / "runs")
    seconds_of_compact = seconds_of("compact", compacted)

    def seconds(command: str) -> dict[Path, Spread]:
        of_study = ["--experiments", str(experiments)]
        ways = {
            place: lambda place=place: seconds_of(command, place, "--results", str(place / "results"), *of_study)
            for place in (folder, compacted)
        }
        return {place: Spread.of(found) for place, found in alternate(ways, 1 if quick else REPEAT).items()}

    report, results = seconds("report"), seconds("results")
    inodes, megabytes = zip(takes(folder), takes(compacted), strict=True)
    page = folder / "results" / "report.html"
    figures = list((folder / "results" / "figures").glob("*.png"))
    rows = [
        ["`lambda-hat report`, s", report[folder], report[compacted], "at most 30 for 1,000 runs"],
        ["`lambda-hat results`, s", results[folder], results[compacted], ""],
        ["files and folders of targets and runs", *inodes, ""],
        ["on the disk, MB", *(f"{size:.1f}" for size in megabytes), ""],
        ["`lambda-hat compact`, s", "", f"{seconds_of_compact:.2f}", ""],
        ["the page, MB", f"{page.stat().st_size / MEGABYTE:.2f}", "", "at most 10 for 1,000 runs"],
        ["its figures", len(figures), "", ""],
    ]
    head = (
        f"## Report\n\n`python benchmarks/report.py`: {len(study.runs):,} runs, in folders of their own and in "
        "archives. Seconds are median (least to most)."
    )
    return f"{head}\n\n{table(['', 'in folders', 'in archives', 'wanted'], rows)}"


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
