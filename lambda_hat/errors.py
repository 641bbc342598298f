"""Every error that a user can meet, with its exit status."""

from __future__ import annotations

import difflib
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import NoReturn, TypeVar

Result = TypeVar("Result")

EXTRAS = {
    "study": (
        "equinox", "h5netcdf", "h5py", "itables", "jinja2", "markupsafe", "matplotlib", "pandas", "plotille", "pyarrow",
        "rich", "safetensors", "xarray",
    ),
    "mpi": ("mpi4py", "optuna", "parsl"),
}  # fmt: skip
"""The modules that each extra of the package brings."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNFINISHED = 75
"""EX_TEMPFAIL of sysexits.h: the same command goes on from there."""
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as in a shell."""
GC_THRESHOLD = 50_000
"""New objects after which a command looks for cycles."""


class LambdaHatError(Exception):
    """Base of the package's errors. The message says what is wrong, what was expected, and what to write instead."""

    exit_code = EXIT_FAILED


class ConfigError(LambdaHatError, ValueError):
    """A configuration, option or command cannot be run as written. Nothing was started."""

    exit_code = EXIT_USAGE


class StoreError(LambdaHatError):
    """The store cannot be read or written, or holds something other than what was asked for."""

    exit_code = EXIT_USAGE


class StoreUnwritable(StoreError):
    """The disk is full, a quota is used up, or a permission is gone. Nothing is lost, but the command cannot go on."""

    exit_code = EXIT_FAILED


class CorruptArtifact(StoreError):
    """A stored file does not match its checksum, or cannot be parsed."""

    exit_code = EXIT_FAILED


class TargetNotBuilt(LambdaHatError):
    """A run needs a target whose `meta.json` is not in the store."""


class Paused(LambdaHatError):
    """A run stopped before its end. Its state is kept, and the same command goes on from there.

    Args:
        reason: Why it stopped.
        advanced: Whether it got further than an earlier attempt.
    """

    exit_code = EXIT_UNFINISHED

    def __init__(self, reason: str, advanced: bool):
        super().__init__(f"stopped before its end: {reason}; what is sampled is kept, run the same command again")
        self.reason = reason
        self.advanced = advanced


class TooLarge(LambdaHatError):
    """A run needs more memory than its rank has. It was not started."""


class BuildFailed(LambdaHatError):
    """A target could not be built from a valid configuration, for example because training diverged."""


class LaunchError(LambdaHatError):
    """The MPI world is not the one that the launcher was asked for. Nothing was started."""

    exit_code = EXIT_USAGE


class MissingExtra(LambdaHatError, ImportError):
    """A package is missing that an extra installs."""

    exit_code = EXIT_USAGE


class SchedulerError(LambdaHatError):
    """The cluster's scheduler refused a job or a question. The message has the scheduler's words."""

    exit_code = EXIT_USAGE


class SchedulerSilent(SchedulerError):
    """A command did not reach the cluster's scheduler, so it says nothing of any job."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """The hint for a mistyped word: "did you mean ...? valid: ...".

    Args:
        word: The mistyped word.
        valid: All valid words.
    """
    options = sorted(map(str, valid))
    close = difflib.get_close_matches(str(word), options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}valid: {', '.join(options)}"


def missing_extra(what: str, error: ModuleNotFoundError) -> MissingExtra | None:
    """The error of a package that is not installed; None where no extra installs it.

    Args:
        what: What needs it.
        error: What its import has raised.
    """
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return MissingExtra(
        f"{what}: needs {package}, which is not installed; write pip install 'lambda-hat[{extra}]'", name=error.name
    )


def require(what: str, packages: Iterable[str]) -> None:
    """Raise MissingExtra if one of these packages of `EXTRAS` is not installed. Nothing is imported.

    Args:
        what: What needs them.
        packages: Their names.
    """
    for package in packages:
        if find_spec(package) is None:
            error = missing_extra(what, ModuleNotFoundError(name=package))
            assert error is not None
            raise error


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that came inside a destructor or a weak reference's callback, where Python drops it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        main_thread = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, [main_thread, signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(unraisable)


def is_interruption(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind `error`.

    Where a Ctrl-C cuts a library's step short, the clean-up of that step may fail in turn, and its exception is what
    arrives: a Ctrl-C inside `OmegaConf.structured` arrives as AttributeError, once in thirty times.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def guarded(work: Callable[[], Result], failed: Callable[[Exception], Result]) -> Result:
    """Do a part whose failure must not take the rest with it: a run, a build, or a command inside another one.

    Args:
        work: The part.
        failed: Called with the exception that the part raised, whatever it is.

    Returns:
        What `work` returns, else what `failed` returns.
    """
    try:
        return work()
    except Exception as error:
        if is_interruption(error):
            raise KeyboardInterrupt from error
        return failed(error)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run the body of a command, and exit with its status.

    The package's own errors become one message and an exit status. Other exceptions keep their traceback: they are
    defects of the package, not of the input.

    Args:
        main: Returns the exit status.
    """
    # By default Python looks for cycles at every 700 new objects, which takes a tenth of importing packages and tracing
    # programs.
    gc.set_threshold(GC_THRESHOLD)
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _interrupt_again
        code = main()
    except (Exception, KeyboardInterrupt) as error:
        if is_interruption(error):
            print("interrupted; run the same command again to continue", file=sys.stderr)
            code = EXIT_INTERRUPTED
        elif isinstance(error, LambdaHatError):
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        elif isinstance(error, ModuleNotFoundError) and (missing := missing_extra("this command", error)):
            print(f"error: {missing}", file=sys.stderr)
            code = missing.exit_code
        elif isinstance(error, BrokenPipeError):
            sys.stderr.close()
            code = EXIT_FAILED
        else:
            raise
    # The end of the interpreter would look for cycles among all modules, again and again.
    gc.freeze()
    sys.exit(code)
