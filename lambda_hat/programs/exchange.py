"""Compiled programs, exchanged between processes through a shared folder.

JAX's persistent cache reads and writes executables, but neither writes its files atomically nor repairs them. So it
gets a private directory on this node, empty but for the moment of a compilation, and what it writes there is exchanged
with the shared folder: one file per program, with a checksum, renamed into place. Nothing that happens to the shared
folder fails a run: the program is then compiled here.

The name of a program is the hash of what JAX hands to the compiler, so that programs whose Python differs from process
to process are exchanged as well, and another version of this package never takes an old program for its own. JAX holds
the executable against its own key once more. The folder's name says for which platform and user: executables are native
code, so a process takes none that were made for another processor, and none from a folder that others can write.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from lambda_hat.cores import xla_cores
from lambda_hat.errors import StoreError
from lambda_hat.files import FileSystemClock, create, json_object, remove_litter, write_bytes_atomic
from lambda_hat.id_utils import canonical_json
from lambda_hat.lease import is_here, process_lives, whoami

MOST_BYTES = 2**30
"""Size of a shared folder; what was used least recently goes first. A program takes about 50 to 500 KB."""
MOST_WAIT = 120.0
"""Seconds for which a process waits for another one's compilation, and for which a marker counts. Longer than almost
any compilation takes; a process that is killed while it compiles costs the others no more."""
POLL = 0.03
TOUCH_AFTER = 3600.0
"""Seconds within which a second use is not noted: a thousand ranks that load one program should not each write."""
UNOWNED_KEPT = 3600.0
"""Seconds for which a private directory that does not say whose it is counts as one that is being made."""
MAGIC = b"lambda_hat program 1\n"
DIGEST_BYTES = 64
PRIVATE_PREFIX = "lambda_hat-programs-"
NOISE = (b"cpu_aot_loader", b"prefer-no-")

IsStopping = Callable[[], bool]

_lock = threading.RLock()
"""JAX has one directory for all threads."""
_hits = threading.local()


def build(
    lowered: jax.stages.Lowered, shared: Path | None, is_stopping: IsStopping
) -> tuple[jax.stages.Compiled, bool]:
    """The executable of `lowered`, and whether it was loaded rather than compiled.

    shared: the folder to exchange programs with; None: there is none. is_stopping: asked while another process compiles
    the same program; once it holds, that one is waited for no more.
    """
    private = None if shared is None else _private_directory()
    folder = None if shared is None or private is None else _platform_folder(shared)
    if private is None or folder is None:
        return _compile(lowered)
    entry = folder / f"{program_key(lowered)}.program"
    with contextlib.ExitStack() as stack:
        files = _read(entry)
        if files is None:
            stack.enter_context(_turn(entry.with_suffix(".busy"), is_stopping))
            files = _read(entry)
        with _lock, _filled(private, files or {}), _without_noise() if files else contextlib.nullcontext():
            executable, loaded = _compile(lowered)
            written = {} if loaded else _files_in(private)
        if files and not loaded:
            _say(f"{entry}: JAX cannot use it; it is removed, and the program was compiled")
            _remove(entry)
        if written.keys() - (files or {}).keys():
            _publish(shared, entry, written)
    return executable, loaded


def program_key(lowered: jax.stages.Lowered) -> str:
    """The program as text says everything but the platform: shapes, dtypes, which arguments are donated."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------
# JAX's side


@functools.cache
def _count_hits() -> None:
    def count(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _hits.count = getattr(_hits, "count", 0) + 1

    jax.monitoring.register_event_listener(count)


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """Compile, or load what lies in JAX's directory; which of them it was is what JAX says."""
    _count_hits()
    before = getattr(_hits, "count", 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        executable = lowered.compile()
    for warning in caught:
        if "persistent compilation cache" in str(warning.message):
            _say(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return executable, getattr(_hits, "count", 0) > before


@contextlib.contextmanager
def _filled(private: Path, files: dict[str, bytes]) -> Iterator[None]:
    """JAX's directory holds just these files, and only inside the block does JAX keep what it compiles: every small
    array operation is a program to it as well."""
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
        for name in _files_in(private):
            _remove(private / name)


def _files_in(private: Path) -> dict[str, bytes]:
    with contextlib.suppress(OSError):
        return {path.name: path.read_bytes() for path in private.iterdir()}
    return {}


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Leave out what XLA prints of every program that it loads on some processors: it takes two of LLVM's preferences
    for features that the processor lacks, on the one that the program was compiled on (jax issue 38445, jax 0.10.1).

    What else is written to standard error inside the block follows at its end.
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
def _private_directory() -> Path | None:
    """JAX's directory, this process's own; None where none can be made, or the user has given JAX another one."""
    if jax.config.jax_compilation_cache_dir is not None:
        return None
    _remove_dead_directories()
    try:
        own = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        (own / "owner.json").write_text(json.dumps(whoami()))
        (own / "jax").mkdir()
    except OSError as error:
        _say(f"{tempfile.gettempdir()}: no directory can be made ({error}); programs are compiled")
        return None
    jax.config.update("jax_compilation_cache_dir", str(own / "jax"))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    # XLA's own caches would make the directory's name a part of JAX's key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    return own / "jax"


def _remove_dead_directories() -> None:
    """Remove what processes left that were killed."""
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


# --------------------------------------------------------------------------------------------------------------
# The shared folder


@functools.cache
def platform() -> dict[str, Any]:
    """Everything, beside the program, that decides what its executable is and where it may run."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "backend": device.client.platform_version,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        # It decides how sums are split, and so their last bits.
        "cores": xla_cores(),
        "user": os.geteuid(),
    }


def _processor() -> dict[str, str]:
    """Model and features of the CPU; where the system does not tell them, a name that no other machine has."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    names += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features")
    found = {name: told[name] for name in names if name in told}
    return found if found.keys() & {"flags", "Features"} else {**found, "host": os.uname().nodename}


def platform_name() -> str:
    """The folder of this platform's programs."""
    return f"programs-{jax.default_backend()}-{hashlib.sha256(canonical_json(platform()).encode()).hexdigest()[:16]}"


def _platform_folder(shared: Path) -> Path | None:
    """Where the programs for this platform lie; None where they cannot be had, or others could plant one."""
    folder = shared / platform_name()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        _say_once(f"{folder}: {error.strerror or error}; programs are compiled")
        return None
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        _say_once(f"{folder}: others can write there; programs are compiled")
        return None
    return folder


def _read(entry: Path) -> dict[str, bytes] | None:
    """The files of an entry; None where there is none that is whole: a damaged one is removed."""
    try:
        data = entry.read_bytes()
        files = decode(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _say(f"{entry}: {error}; it is removed, and the program compiled")
        with contextlib.suppress(OSError):
            entry.rmdir() if entry.is_dir() else entry.unlink()
        return None
    with contextlib.suppress(OSError):
        if abs(time.time() - entry.stat().st_mtime) > TOUCH_AFTER:
            os.utime(entry)
    return files


def encode(files: dict[str, bytes]) -> bytes:
    """An entry: a line that names the format, the checksum of all that follows it, a line of JSON, and the contents."""
    head = {"platform": platform_name(), "files": {name: len(content) for name, content in files.items()}}
    rest = json.dumps(head).encode() + b"\n" + b"".join(files.values())
    return MAGIC + hashlib.sha256(rest).hexdigest().encode() + rest


def decode(data: bytes) -> dict[str, bytes]:
    """The files of an entry by name. Raises ValueError with what is wrong with it."""
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
        # The folder may have been deleted meanwhile.
        if _platform_folder(shared) is not None:
            write_bytes_atomic(entry, encode(files))
            tidy(shared)
    except (OSError, StoreError) as error:
        _say_once(f"not kept for others: {error}")


def tidy(shared: Path) -> None:
    """Bring a shared folder below its size, and remove what the dead have left in it."""
    found = []
    for folder in shared.glob("programs-*"):
        remove_litter(folder)
        clock = FileSystemClock(folder)
        for marker in folder.glob("*.busy"):
            if _is_stale(_content(marker)) or _age(marker, clock) > MOST_WAIT:
                _remove(marker)
        for entry in folder.glob("*.program"):
            with contextlib.suppress(OSError):
                status = entry.stat()
                found.append((status.st_mtime, status.st_size, entry))
    excess = sum(size for _, size, _ in found) - MOST_BYTES
    for _, size, entry in sorted(found):
        if excess <= 0:
            break
        _remove(entry)
        excess -= size


# --------------------------------------------------------------------------------------------------------------
# One compiles, the others wait


@contextlib.contextmanager
def _turn(marker: Path, is_stopping: IsStopping) -> Iterator[None]:
    """This process's turn to look for the program, and to compile it where it is still not there.

    It waits once, for the one that compiles now: where that brings nothing, a program that cannot be kept for one, all
    others go on together.
    """
    taken = _take(marker)
    if taken is False:
        _wait(marker, is_stopping)
        taken = _take(marker)
    try:
        yield
    finally:
        if taken:
            _remove(marker)


def _take(marker: Path) -> bool | None:
    """Whether the marker is ours now; None where there can be none."""
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
    """Until the marker is gone or another one, its owner is dead or has had its time, or this process is to stop."""
    end = time.monotonic() + MOST_WAIT
    if _age(marker, FileSystemClock(marker.parent)) > MOST_WAIT:
        end = time.monotonic()
    seen = b""
    while time.monotonic() < end:
        content = _content(marker)
        # An empty one is about to be written.
        seen = seen or content or b""
        if content is None or content != seen or is_stopping():
            return
        if _is_stale(content):
            break
        time.sleep(POLL)
    _remove(marker)


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


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _say(sentence: str) -> None:
    """One line in the log of the rank, or on the standard error of a command."""
    with contextlib.suppress(OSError):
        print(f"compiled programs: {sentence}", file=sys.stderr, flush=True)


@functools.cache
def _say_once(sentence: str) -> None:
    _say(sentence)
