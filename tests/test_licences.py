"""The licences of what an installation brings, and the files that say how lambda_hat itself may be used and cited."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("study", "mpi")
PERMISSIVE = {
    "0BSD", "Apache Software License", "Apache-2.0", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND",
    "ISC", "ISC License (ISCL)", "LicenseRef-MPICH", "MIT", "MIT License", "MIT-CMU", "PSF-2.0",
    "Python Software Foundation License", "Zlib",
}  # fmt: skip
"""Licences that ask for no more than their own text, and so are no obstacle to MIT. MPICH's is of that kind."""
OF_THEIR_OWN_FILES = {"MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"}
"""It binds changes to the package's own files alone: no obstacle to using it beside MIT."""


def licences_of(package: Distribution) -> list[str]:
    """The licences of a package, each of which applies."""
    told = package.metadata
    classified = [line.split(" :: ")[-1] for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    found = [name for name in classified if name != "OSI Approved"]
    expression = told["License-Expression"] or (None if found else told["License"] or "none")
    return found if expression is None else re.split(r" (?:AND|OR) ", re.sub(r"[()]", "", expression.splitlines()[0]))


def brought(requirements: list[str]) -> dict[str, Distribution]:
    """Every package that is installed for these requirements, by its name."""
    found: dict[str, Distribution] = {}
    asked: dict[str, set[str]] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        one = waiting.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if name in found and one.extras <= asked[name]:
            continue
        found[name] = distribution(name)
        asked[name] = asked.get(name, set()) | one.extras
        for line in found[name].requires or []:
            needed = Requirement(line)
            extras = [{"extra": extra} for extra in (*asked[name], "")]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append(needed)
    return found


def test_every_package_that_a_study_brings_may_be_used_beside_mit():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra])]
    packages = brought([line for line in lines if not line.startswith("lambda-hat")])
    assert {"jax", "jaxlib", "scipy", "parsl", "mpi4py", "matplotlib"} <= set(packages)
    allowed = PERMISSIVE | OF_THEIR_OWN_FILES
    found = {name: licences_of(package) for name, package in packages.items()}
    assert {name: told for name, told in found.items() if not set(told) <= allowed} == {}


@pytest.mark.parametrize(
    ("told", "licences"),
    [
        ("License-Expression: BSD-3-Clause AND (Zlib OR GPL-3.0-only)", ["BSD-3-Clause", "Zlib", "GPL-3.0-only"]),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License", ["MIT License"]),
        ("License: LGPL", ["LGPL"]),
        ("Classifier: Topic :: Software", ["none"]),
    ],
)
def test_licences_are_read_from_metadata(told, licences, tmp_path):
    folder = tmp_path / "some-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: some\nVersion: 1.0\n{told}\n")
    found = licences_of(Distribution.at(folder))
    assert found == licences
    assert (set(found) <= PERMISSIVE) == (licences == ["MIT License"])


# ------------------------------------------------------------------------------------------------- licence, citation


def test_the_licence_is_mit_and_the_metadata_say_so():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n\nCopyright (c) 2026 the lambda_hat authors\n")
    assert "without restriction, including without limitation the rights" in " ".join(text.split())
    assert (PROJECT["license"], PROJECT["license-files"]) == ("MIT", ["LICENSE"])
    assert (ROOT / "lambda_hat" / "py.typed").is_file()


PERSON, ENTITY = {"family-names", "given-names"}, {"name"}
REFERENCE = {"type", "title", "authors", "year", "notes", "journal", "volume", "conference", "publisher", "identifiers"}
"""Of the keys of CFF 1.2.0 those that the file has use for."""


def test_the_citation_has_the_form_of_cff_and_the_papers_of_the_documents():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (content["cff-version"], content["type"], content["license"]) == ("1.2.0", "software", "MIT")
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    assert set(content) <= {"cff-version", "message", "title", "type", "authors", "license", "keywords", "references"}
    for reference in content["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference) <= REFERENCE, reference
        assert reference["type"] in ("article", "book", "conference-paper")
        assert type(reference["year"]) is int
        assert all(set(one) == ENTITY for key in ("conference", "publisher") if (one := reference.get(key)))
        assert all(one["type"] in ("doi", "url", "swh", "other") for one in reference.get("identifiers", ()))
    for author in [*content["authors"], *(one for each in content["references"] for one in each["authors"])]:
        assert set(author) in (PERSON, ENTITY), author
    said = {one["value"] for each in content["references"] for one in each.get("identifiers", ())}
    pages = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("method", "samplers"))
    assert said and all(value.replace(":", " ") in pages for value in said)
