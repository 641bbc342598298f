"""JAX's own cache of executables, kept in a private directory of this process.

JAX reads and writes executables there, but neither writes its files atomically nor repairs damaged ones. So the
directory is empty except while a program is compiled or loaded; `compile_cache` exchanges what JAX writes there with
other processes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax

from lambda_hat.store.files import json_object
from lambda_hat.store.process_identity import is_here, process_lives, whoami

UNOWNED_KEPT = 3600.0
"""Seconds after which a private directory without the name of its owner is removed; a younger one may be in the
making."""
PRIVATE_PREFIX = "lambda_hat-programs-"
NOISE = (b"cpu_aot_loader", b"prefer-no-")
"""A line of XLA that has all of these words is not shown."""

_hits = threading.local()


@functools.cache
def _count_hits() -> None:
    def count(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _hits.count = getattr(_hits, "count", 0) + 1

    jax.monitoring.register_event_listener(count)


def compile_or_load(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """Compile a program, or load it where JAX's directory has it.

    Returns:
        The executable, and whether JAX loaded it.
    """
    _count_hits()
    before = getattr(_hits, "count", 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        executable = lowered.compile()
    for warning in caught:
        if "persistent compilation cache" in str(warning.message):
            say(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return executable, getattr(_hits, "count", 0) > before


@contextlib.contextmanager
def filled(private: Path, files: dict[str, bytes]) -> Iterator[None]:
    """Put `files` into JAX's directory for the duration of the block, and let JAX keep what it compiles there.

    Outside such a block JAX keeps nothing: every small array operation is a program to it as well.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        # A full disk costs no more than a compilation.
        with contextlib.suppress(OSError):
            private.mkdir(exist_ok=True)
            for name, content in files.items():
                (private / name).write_bytes(content)
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
        for name in files_in(private):
            remove(private / name)


def files_in(private: Path) -> dict[str, bytes]:
    """The files of JAX's directory by name; none where it cannot be read."""
    with contextlib.suppress(OSError):
        return {path.name: path.read_bytes() for path in private.iterdir()}
    return {}


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Leave out what XLA prints about every program that it loads on some processors.

    XLA compares LLVM's preferences with the features of the processor, and complains about two of them even on the
    processor that compiled the program (jax issue 38445, jax 0.10.1). Everything else that is written to standard error
    inside the block appears at its end.
    """
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:
            # Without room for a file, or without standard error, there is nothing to leave out.
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            rest = b"".join(line for line in held if not all(word in line for word in NOISE))
            with contextlib.suppress(OSError):
                os.write(2, rest)


@functools.cache
def private_directory() -> Path | None:
    """JAX's directory in this process; None where none can be made, or where the user has given JAX another one."""
    # Type checkers do not see JAX's options.
    if cast(Any, jax.config).jax_compilation_cache_dir is not None:
        return None
    _remove_dead_directories()
    try:
        own = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        (own / "owner.json").write_text(json.dumps(whoami()))
        (own / "jax").mkdir()
    except OSError as error:
        say(f"{tempfile.gettempdir()}: no directory can be made ({error}); programs are compiled")
        return None
    jax.config.update("jax_compilation_cache_dir", str(own / "jax"))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    # XLA's own caches would make the directory's name a part of JAX's key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    return own / "jax"


def _remove_dead_directories() -> None:
    """Remove the private directories of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PRIVATE_PREFIX}*"):
        with contextlib.suppress(OSError):
            try:
                owner = json_object((path / "owner.json").read_bytes())
            except FileNotFoundError:
                owner = None
            if owner is None:
                dead = time.time() - path.stat().st_mtime > UNOWNED_KEPT
            else:
                dead = is_here(owner) and not process_lives(owner)
            if dead:
                shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file; one that cannot be removed stays."""
    with contextlib.suppress(OSError):
        path.unlink()


def say(sentence: str) -> None:
    """Print one line: into the log of the rank, or to the standard error of a command."""
    with contextlib.suppress(OSError):
        print(f"compiled programs: {sentence}", file=sys.stderr, flush=True)


@functools.cache
def say_once(sentence: str) -> None:
    """As `say`, but only the first time in this process."""
    say(sentence)
