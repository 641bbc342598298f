"""Links that work in the checkout, made to work in the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

LINK = re.compile(r"(?P<bang>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
SCHEME = re.compile(r"[a-z]+:")
FENCE = re.compile(r"(^```.*?^```$)", flags=re.DOTALL | re.MULTILINE)
FOLDER = "docs/"
PICTURES = (".png", ".svg", ".jpg")
HOME = "README.md"
"""Is the site's first page."""


def for_site(text: str, source: str, add_picture: Callable[[str], str]) -> str:
    """The Markdown of one page with its links as the site needs them.

    source: the page's path in the checkout. add_picture: takes the path of a picture outside of `docs/`, and says where
    it lies in the site. A link to any other file of the checkout becomes that file's name.
    """
    here = posixpath.dirname("" if source == HOME else source.removeprefix(FOLDER))

    def replace(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if SCHEME.match(target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path == HOME:
            path = f"{FOLDER}index.md"
        if path.startswith(FOLDER):
            place = path.removeprefix(FOLDER)
            if place.endswith(".ipynb"):
                place = f"{place.removesuffix('.ipynb')}.md"
        elif path.endswith(PICTURES):
            place = add_picture(path)
        else:
            return f"`{path}`" if match["text"].strip("`") == path else f"{match['text']} (`{path}`)"
        return f"{match['bang']}[{match['text']}]({posixpath.relpath(place, here or '.')}{anchor})"

    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in FENCE.split(text))
