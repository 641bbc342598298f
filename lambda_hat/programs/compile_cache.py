"""Compiled programs, exchanged between processes through a shared folder.

The executables that JAX's cache writes (`jax_cache`) go into the shared folder: one file per program, with a checksum,
renamed into place. Nothing that happens to the shared folder fails a run: the program is then compiled here.

The name of a program is the hash of what JAX hands to the compiler. So programs whose Python differs from process to
process are exchanged as well, and another version of this package never takes an old program for its own. JAX compares
the executable with its own key once more.

Executables are native code. The folder's name therefore says for which platform and user they were made: a process
takes none that were made for another processor, and none from a folder that others can write.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from lambda_hat.errors import StoreError
from lambda_hat.id_utils import canonical_json
from lambda_hat.programs.cores import xla_cores
from lambda_hat.programs.jax_cache import (
    compile_or_load,
    files_in,
    filled,
    private_directory,
    remove,
    say,
    say_once,
    without_noise,
)
from lambda_hat.store.files import FileSystemClock, create, json_object, remove_litter, write_bytes_atomic
from lambda_hat.store.process_identity import is_here, process_lives, whoami

MOST_BYTES = 2**30
"""Size up to which a shared folder grows; the programs used least recently go first. One takes 50 to 500 KB."""
MOST_WAIT = 120.0
"""Seconds for which a process waits for another one's compilation, and after which a marker no longer counts. Almost
every compilation takes less; a process that is killed while it compiles costs the others no more than this."""
POLL = 0.03
"""Seconds between two looks at the marker of a program that another process compiles."""
TOUCH_AFTER = 3600.0
"""Seconds within which a second use of a program is not noted: else each of a thousand ranks would write."""
MAGIC = b"lambda_hat program 1\n"
DIGEST_BYTES = 64
"""Length of a sha256 in hexadecimal."""

IsStopping = Callable[[], bool]

_lock = threading.RLock()
"""JAX has one directory for all threads."""


def build(
    lowered: jax.stages.Lowered, shared: Path | None, is_stopping: IsStopping
) -> tuple[jax.stages.Compiled, bool]:
    """Load a program from the shared folder, or compile it and put it there.

    Args:
        lowered: The program.
        shared: The folder through which programs are exchanged; None: there is none.
        is_stopping: Asked while another process compiles the same program; once it is true, the wait ends.

    Returns:
        The executable, and whether it was loaded rather than compiled.
    """
    private = None if shared is None else private_directory()
    folder = None if shared is None or private is None else _platform_folder(shared)
    if shared is None or private is None or folder is None:
        return compile_or_load(lowered)
    entry = folder / f"{program_key(lowered)}.program"
    with contextlib.ExitStack() as stack:
        files = _read(entry)
        if files is None:
            stack.enter_context(_turn(entry.with_suffix(".busy"), is_stopping))
            files = _read(entry)
        with _lock, filled(private, files or {}), without_noise() if files else contextlib.nullcontext():
            executable, loaded = compile_or_load(lowered)
            written = {} if loaded else files_in(private)
        if files and not loaded:
            say(f"{entry}: JAX cannot use it; it is removed, and the program was compiled")
            remove(entry)
        if written.keys() - (files or {}).keys():
            _publish(shared, entry, written)
    return executable, loaded


def program_key(lowered: jax.stages.Lowered) -> str:
    """The name of a program: the hash of its text, which has shapes, dtypes and donated arguments, but no platform."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------
# The shared folder


@functools.cache
def platform() -> dict[str, Any]:
    """Everything beside the program that decides what its executable is and where it may run."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "backend": device.client.platform_version,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        # The number decides how XLA splits sums, and so their last bits.
        "cores": xla_cores(),
        "user": os.geteuid(),
    }


def _processor() -> dict[str, str]:
    """Model and features of the CPU; where the system does not tell them, the name of this host instead."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    names += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features")
    found = {name: told[name] for name in names if name in told}
    return found if found.keys() & {"flags", "Features"} else {**found, "host": os.uname().nodename}


def platform_name() -> str:
    """The name of the folder of this platform's programs."""
    return f"programs-{jax.default_backend()}-{hashlib.sha256(canonical_json(platform()).encode()).hexdigest()[:16]}"


def _platform_folder(shared: Path) -> Path | None:
    """The folder of this platform's programs; None where there can be none, or where others could plant a program."""
    folder = shared / platform_name()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        say_once(f"{folder}: {error.strerror or error}; programs are compiled")
        return None
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        say_once(f"{folder}: others can write there; programs are compiled")
        return None
    return folder


def _read(entry: Path) -> dict[str, bytes] | None:
    """The files of an entry; None where it is missing or damaged. A damaged entry is removed."""
    try:
        data = entry.read_bytes()
        files = decode(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        say(f"{entry}: {error}; it is removed, and the program compiled")
        with contextlib.suppress(OSError):
            entry.rmdir() if entry.is_dir() else entry.unlink()
        return None
    with contextlib.suppress(OSError):
        if abs(time.time() - entry.stat().st_mtime) > TOUCH_AFTER:
            os.utime(entry)
    return files


def encode(files: dict[str, bytes]) -> bytes:
    """The bytes of an entry: a line with the format, the checksum of what follows, a line of JSON, the contents.

    Args:
        files: Contents by name.
    """
    head = {"platform": platform_name(), "files": {name: len(content) for name, content in files.items()}}
    rest = json.dumps(head).encode() + b"\n" + b"".join(files.values())
    return MAGIC + hashlib.sha256(rest).hexdigest().encode() + rest


def decode(data: bytes) -> dict[str, bytes]:
    """The files of an entry by name.

    Raises:
        ValueError: The entry is damaged, or was made for another platform; the message says which.
    """
    digest, rest = data[len(MAGIC) : len(MAGIC) + DIGEST_BYTES], data[len(MAGIC) + DIGEST_BYTES :]
    if not data.startswith(MAGIC):
        raise ValueError("an entry of another format" if data else "an empty entry")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError("an entry whose checksum does not fit")
    line, _, contents = rest.partition(b"\n")
    head = json_object(line) or {}
    if head.get("platform") != platform_name():
        raise ValueError(f"an entry for {head.get('platform')}")
    sizes = head.get("files")
    if not isinstance(sizes, dict) or any(Path(name).name != name or type(sizes[name]) is not int for name in sizes):
        raise ValueError("an entry with files that JAX does not write")
    files, start = {}, 0
    for name, size in sizes.items():
        files[name] = contents[start : start + size]
        start += size
    return files


def _publish(shared: Path, entry: Path, files: dict[str, bytes]) -> None:
    try:
        # Someone may have deleted the folder in the meantime.
        if _platform_folder(shared) is not None:
            write_bytes_atomic(entry, encode(files))
            tidy(shared)
    except (OSError, StoreError) as error:
        say_once(f"not kept for others: {error}")


def tidy(shared: Path) -> None:
    """Bring a shared folder below `MOST_BYTES`, and remove what killed processes have left in it."""
    found = []
    for folder in shared.glob("programs-*"):
        remove_litter(folder)
        clock = FileSystemClock(folder)
        for marker in folder.glob("*.busy"):
            if _is_stale(_content(marker)) or _age(marker, clock) > MOST_WAIT:
                remove(marker)
        for entry in folder.glob("*.program"):
            with contextlib.suppress(OSError):
                status = entry.stat()
                found.append((status.st_mtime, status.st_size, entry))
    excess = sum(size for _, size, _ in found) - MOST_BYTES
    for _, size, entry in sorted(found):
        if excess <= 0:
            break
        remove(entry)
        excess -= size


# --------------------------------------------------------------------------------------------------------------
# One compiles, the others wait


@contextlib.contextmanager
def _turn(marker: Path, is_stopping: IsStopping) -> Iterator[None]:
    """Enter the block when it is this process's turn to look for the program, and to compile it where it is missing.

    The process waits once, for the one that compiles at the moment. If no program comes of that (it may be one that
    cannot be kept), all waiting processes go on together.
    """
    taken = _take(marker)
    if taken is False:
        _wait(marker, is_stopping)
        taken = _take(marker)
    try:
        yield
    finally:
        if taken:
            remove(marker)


def _take(marker: Path) -> bool | None:
    """Whether this process now holds the marker; None where the folder takes no marker."""
    try:
        descriptor = create(marker)
    except FileExistsError:
        return False
    except OSError:
        return None
    with contextlib.suppress(OSError), os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps({**whoami(), "time": time.time()}).encode())
    return True


def _wait(marker: Path, is_stopping: IsStopping) -> None:
    """Wait until the marker is gone or replaced, its owner is dead or over time, or this process is to stop."""
    end = time.monotonic() + MOST_WAIT
    if _age(marker, FileSystemClock(marker.parent)) > MOST_WAIT:
        end = time.monotonic()
    seen = b""
    while time.monotonic() < end:
        content = _content(marker)
        # An empty marker is about to be written.
        seen = seen or content or b""
        if content is None or content != seen or is_stopping():
            return
        if _is_stale(content):
            break
        time.sleep(POLL)
    remove(marker)


def _content(marker: Path) -> bytes | None:
    try:
        return marker.read_bytes()
    except OSError:
        return None


def _is_stale(content: bytes | None) -> bool:
    owner = json_object(content)
    return owner is not None and is_here(owner) and not process_lives(owner)


def _age(marker: Path, clock: FileSystemClock) -> float:
    try:
        return clock.now() - marker.stat().st_mtime
    except OSError:
        return 0.0
