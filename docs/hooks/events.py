"""What MkDocs is told beyond `mkdocs.yml`: the README is the first page, a stale reference is refused, notebooks are
pages, equations are MathML."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from docs.hooks.equations import equations_to_mathml  # noqa: E402
from docs.hooks.links import FOLDER, HOME, for_site  # noqa: E402
from docs.hooks.notebooks import notebook_in_markdown  # noqa: E402
from docs.hooks.reference import COMMAND, stale_pages  # noqa: E402

PICTURES = "pictures"
"""Folder of the site for pictures that lie outside of `docs/`."""


def on_pre_build(config: MkDocsConfig) -> None:
    """Refuse pages that say something else than the code."""
    if stale := stale_pages():
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        raise PluginError(f"{names}: not what the code says; {COMMAND}")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page, and a page with its pictures for every notebook."""
    files.append(File.generated(config, "index.md", content=(ROOT / HOME).read_text()))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = notebook_in_markdown(Path(notebook.abs_src_path))
        page = notebook.src_uri.removesuffix(".ipynb")
        files.append(File.generated(config, f"{page}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"{page.rpartition('/')[0]}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend the links."""

    def add_picture(path: str) -> str:
        place = f"{PICTURES}/{path.replace('/', '-')}"
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
        return place

    source = HOME if page.file.src_uri == "index.md" else FOLDER + page.file.src_uri
    return for_site(markdown, source, add_picture)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations last: Markdown would take their signs for its own."""
    return equations_to_mathml(html)
