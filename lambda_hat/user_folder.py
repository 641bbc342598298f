"""The folder that a command is started in, where modules lie that a study names.

It is last on Python's path: a file of the user's may have the name of a module that processes of a study import
themselves, as parsl.py or random.py.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from lambda_hat.config import BuildConfig, CustomBuild, SampleConfig
from lambda_hat.errors import ConfigError

OWN = ("lambda_hat", "flows", "mpi")
"""Packages of the project."""


def other_entries(python_path: str) -> list[str]:
    """The entries of a `PYTHONPATH` but for those that mean the current folder, whatever it is."""
    return [entry for entry in python_path.split(os.pathsep) if entry not in ("", os.curdir)]


def is_script_of(folder: Path) -> bool:
    """Whether this process was started as a script that lies in `folder`."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return script is not None and Path(script).resolve().parent == folder


def tidy_path(folder: Path) -> None:
    """Take the `folder` of a script off the path of this process.

    The current folder, and then the one in which `folder` lies, become last. The packages of the project must have been
    imported.
    """
    last = [os.getcwd(), str(folder.parent)]
    taken_off = [str(folder), *last]
    sys.path[:] = [*(entry for entry in sys.path if os.path.realpath(entry) not in taken_off), *last]


def refuse_taken(where: str, name: str) -> None:
    """Refuse a function whose module lies in the current folder, but has a name that means another module.

    Args:
        where: the key that names it.
        name: `package.module:function`.

    Raises:
        ConfigError: the module would not be imported.
    """
    if os.getcwd() in other_entries(os.environ.get("PYTHONPATH", "")):
        return
    module = name.partition(":")[0]
    top = module.partition(".")[0]
    here = PathFinder.find_spec(top, [os.getcwd()])
    # A folder of data is a package to Python, though it has none of the modules that are named.
    if here is None or (here.origin is None and not _has(here, module)):
        return
    if (first := _found(top)) is not None and _place(first) != _place(here):
        raise ConfigError(
            f"{where}: {name}: the name {top} is taken by {_owner(top)} ({_place(first)}), so that {_place(here)} "
            "would not be imported; give it another name"
        )


def refuse_taken_names(source: Path, targets: Iterable[BuildConfig], samplers: Iterable[SampleConfig]) -> None:
    """Refuse functions of a study whose modules `refuse_taken` refuses.

    Args:
        source: what messages call the study.
        targets: its targets.
        samplers: its runs.

    Raises:
        ConfigError: there is one.
    """
    custom = [build.target for build in targets if isinstance(build, CustomBuild)]
    named = {each.function: f"target.{'factory' if each.torch is None else 'torch'}" for each in custom}
    # Runs of one entry have the same object.
    for observe in {id(cfg.observe): cfg.observe for cfg in samplers if cfg.observe}.values():
        for name, each in observe.items():
            named |= {each.function: f"observe.{name}.function", each.data: f"observe.{name}.data"}
    for function, key in named.items():
        if function is not None:
            refuse_taken(f"{source}: {key}", function)


def refuse_hiding(root: Path) -> None:
    """Refuse modules that lie beside the packages of the project and hide others from every process of a study.

    Args:
        root: the folder of those packages, first on the path of these processes.

    Raises:
        ConfigError: there is one.
    """
    for path in sorted(root.iterdir()):
        if path.name in OWN or not (path.suffix == ".py" or (path / "__init__.py").is_file()):
            continue
        first = _found(path.stem)
        if first is not None and root not in Path(_place(first)).parents:
            raise ConfigError(
                f"{path}: hides {path.stem} of {_owner(path.stem)} ({_place(first)}) from the processes of a study; "
                f"move it out of {root}, into a folder of your own, and start your study there"
            )


def _found(top: str) -> ModuleSpec | None:
    """What a process imports under this name, in whose path the current folder is last or missing."""
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _has(package: ModuleSpec, module: str) -> bool:
    place = Path(*(package.submodule_search_locations or ()), *module.split(".")[1:])
    return "." in module and (place.with_suffix(".py").is_file() or place.is_dir())


def _place(spec: ModuleSpec) -> str:
    """The file of a module; the folder of a package without one."""
    places: Iterable[str] = spec.submodule_search_locations or ()
    return os.path.realpath(spec.origin) if spec.has_location and spec.origin else next(iter(places), str(spec.origin))


def _owner(top: str) -> str:
    if top in OWN:
        return "lambda_hat"
    return "Python's standard library" if top in sys.stdlib_module_names else "an installed package"
