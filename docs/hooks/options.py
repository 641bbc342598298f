"""The options of every command as Markdown, from the parsers that the commands use."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import flows.packed
import flows.parsl_llc
from docs.hooks.tables import table
from flows import tune
from flows.driver import options
from lambda_hat.entrypoints import cli
from mpi import run_pack

ROOT = Path(__file__).resolve().parents[2]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command that a person types, and its parser."""
    found = {
        "python flows/packed.py": options.options_parser(flows.packed.__doc__ or "", packed=True),
        "python flows/parsl_llc.py": options.options_parser(flows.parsl_llc.__doc__ or "", packed=False),
        "python flows/tune.py": tune.options_parser(),
        "python mpi/run_pack.py": run_pack.options_parser(),
    }
    whole = cli.options_parser()
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help for choice in action._choices_actions}
            for name, parser in action.choices.items():
                parser.description = parser.description or about[name]
                found[f"lambda-hat {name}"] = parser
    # They hand their words over to the scripts.
    del found["lambda-hat run"], found["lambda-hat tune"]
    return found


def options_in_markdown() -> str:
    """A section with a table for every command."""
    return "\n".join(_section(command, parser) for command, parser in parsers().items())


def _section(command: str, parser: argparse.ArgumentParser) -> str:
    about = " ".join((parser.description or "").split()).rstrip(".")
    rows = list(_rows(parser))
    body = table(("option", "meaning"), rows) if rows else "It takes no options.\n"
    return f"## `{command}`\n\n{about[:1].upper()}{about[1:]}.\n\n{body}"


def _rows(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield _name(action), _meaning(action)


def _name(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else None
    if action.choices is not None:
        # No bar: in some readers one ends a cell, in code as well.
        value = f"{{{','.join(map(str, action.choices))}}}"
    if not action.option_strings:
        return f"`{value or action.dest}`"
    takes = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
    return ", ".join(f"`{word}{takes}`" for word in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    # argparse reads % as the beginning of a name.
    about = (action.help or "").replace("%%", "%")
    if action.required and action.option_strings:
        about = f"{about}; always needed"
    default = action.default
    if default in (None, False, argparse.SUPPRESS) or default == [] or "default" in about:
        return about
    if isinstance(default, Path) and default.is_relative_to(ROOT):
        default = default.relative_to(ROOT)
    return f"{about} (default `{default}`)"
