"""Notebooks as Markdown, with the outputs that they were committed with."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from nbconvert import MarkdownExporter


def notebook_in_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook, and its pictures by file name, which belong beside the page."""
    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(str(path), {"unique_key": path.stem, "output_files_dir": "."})
    return text, {PurePosixPath(name).name: content for name, content in resources["outputs"].items()}
