"""Build the distribution of a tagged release, and check it: python .ci/release.py [FOLDER].

HEAD has the tag vX.Y.Z and nothing is uncommitted. CHANGELOG.md begins with that version and its day. The wheel and the
sdist are made, their metadata is checked, and the tests of an installation run on the wheel. Nothing is uploaded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("flows", "mpi", "conf", "slurm_templates")
"""Folders beside the package that the wheel has inside it."""


def version_of(tags: list[str]) -> str:
    """The version that a commit's tags name. Raises SystemExit where they name none, or several."""
    found = [tag[1:] for tag in tags if re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag)]
    if len(found) != 1:
        raise SystemExit(f"error: HEAD has the tags {tags or 'none'}; give it one: git tag -a vX.Y.Z")
    return found[0]


def check_changelog(text: str, version: str) -> None:
    """Raise SystemExit unless the first section is that of `version`, with its day, and says something."""
    heading, *content = re.split(r"^## (.*)$", text, maxsplit=2, flags=re.MULTILINE)[1:3]
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
        raise SystemExit(f"error: CHANGELOG.md begins with {heading!r}, expected '{version} (YYYY-MM-DD)'")
    if "### Numbers" not in content[0]:
        raise SystemExit(f"error: CHANGELOG.md: {version}: no section '### Numbers', which says whether numbers change")


def check_wheel(path: Path, version: str) -> None:
    """Raise SystemExit unless the wheel has the files of the checkout, inside the package."""
    names = set(zipfile.ZipFile(path).namelist())
    info = f"lambda_hat-{version}.dist-info"
    if tops := {name.split("/")[0] for name in names} - {"lambda_hat", info}:
        raise SystemExit(f"error: {path.name}: {', '.join(sorted(tops))} would lie beside everybody's packages")
    wanted = {f"lambda_hat/{name}" for name in tracked("lambda_hat")} | {f"{info}/licenses/LICENSE"}
    wanted |= {f"lambda_hat/shipped/{folder}/{name}" for folder in SHIPPED for name in tracked(folder)}
    if missing := sorted(wanted - names):
        raise SystemExit(f"error: {path.name}: it lacks {', '.join(missing[:10])}")


def check_sdist(path: Path) -> None:
    """Raise SystemExit unless the sdist has what the wheel is made of, and the tests."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"{folder}/{name}" for folder in ("lambda_hat", "tests", *SHIPPED) for name in tracked(folder)}
    if missing := sorted((wanted | {"LICENSE", "CHANGELOG.md", "CITATION.cff", ".ci/release.py"}) - names):
        raise SystemExit(f"error: {path.name}: it lacks {', '.join(missing[:10])}")


def tracked(folder: str) -> list[str]:
    """The files of a folder of the repository, by their paths in it."""
    return said("git", "ls-files", cwd=ROOT / folder)


def said(*command: str, cwd: Path = ROOT) -> list[str]:
    """The lines that a command prints."""
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def build(folder: Path) -> tuple[Path, Path]:
    """Make the wheel and the sdist of the checkout in `folder`, which has no others. Returns their paths."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def main() -> None:
    """Build and check."""
    version = version_of(said("git", "tag", "--points-at", "HEAD"))
    if changed := said("git", "status", "--porcelain"):
        raise SystemExit(f"error: not committed: {changed[0]}")
    check_changelog((ROOT / "CHANGELOG.md").read_text(), version)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"error: {folder}: is not empty")
    wheel, sdist = build(folder)
    check_wheel(wheel, version)
    check_sdist(sdist)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=True)
    installed = [sys.executable, "-m", "pytest", "-q", "tests/test_installation.py"]
    subprocess.run(installed, check=True, cwd=ROOT, env={**os.environ, "LAMBDA_HAT_WHEEL": str(wheel)})
    print(f"{wheel}\n{sdist}\nchecked; to publish them: {Path(sys.executable).name} -m twine upload {folder}/*")


if __name__ == "__main__":
    main()
