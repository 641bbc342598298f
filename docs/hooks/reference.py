"""The reference of options and of configuration keys, which comes from the code and lies in the repository.

python -m docs.hooks.reference     # make reference: writes what is stale anew
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from docs.hooks.keys import keys_in_markdown
from docs.hooks.options import options_in_markdown

FOLDER = Path(__file__).resolve().parents[1]
MADE: dict[str, Callable[[], str]] = {"options.md": options_in_markdown, "configuration.md": keys_in_markdown}
"""Pages, and what makes the part of them between the two lines of `PART`."""
PART = re.compile(
    r"(?<=<!-- made by make reference -->\n)\n.*?(?=<!-- until here -->$)", flags=re.DOTALL | re.MULTILINE
)
COMMAND = "make reference"


def stale_pages() -> dict[Path, str]:
    """The pages that are not what the code says, and what they should be."""
    found = {}
    for name, make in MADE.items():
        page = FOLDER / name
        text = page.read_text()
        before, after = PART.split(text)
        anew = f"{before}\n{make()}\n{after}"
        if anew != text:
            found[page] = anew
    return found


if __name__ == "__main__":
    for path, content in stale_pages().items():
        path.write_text(content)
        print(path)
