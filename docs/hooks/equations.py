"""Equations as MathML, which browsers show by themselves: nothing is fetched, and no script runs."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', flags=re.DOTALL)
"""What `pymdownx.arithmatex` makes of `$...$` and `$$...$$`."""


def equations_to_mathml(page: str) -> str:
    """The HTML of a page with every equation converted from LaTeX."""

    def convert_one(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        return convert(html.unescape(match["latex"]).strip(), display=display)

    return EQUATION.sub(convert_one, page)
