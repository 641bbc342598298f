"""Every error that a user can meet, and the exit status that each one means."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNFINISHED = 75
EXIT_INTERRUPTED = 130


class LambdaHatError(Exception):
    """Base of the package's errors. The message says what, what was expected, and what to write instead."""

    exit_code = EXIT_FAILED


class ConfigError(LambdaHatError, ValueError):
    """A configuration, option or command that cannot be run as written; nothing was started."""

    exit_code = EXIT_USAGE


class StoreError(LambdaHatError):
    """The store cannot be read or written, or holds something other than what was asked for."""

    exit_code = EXIT_USAGE


class StoreUnwritable(StoreError):
    """The disk is full, a quota is used up, or the permission is gone: nothing is lost, and there is no going on."""

    exit_code = EXIT_FAILED


class CorruptArtifact(StoreError):
    """A stored file does not match its checksum or cannot be parsed."""

    exit_code = EXIT_FAILED


class TargetNotBuilt(LambdaHatError):
    """A run needs a target whose `meta.json` is not in the store."""


class Paused(LambdaHatError):
    """A run stopped before its end, and its state is kept: the same command goes on from there."""

    exit_code = EXIT_UNFINISHED

    def __init__(self, reason: str, advanced: bool):
        super().__init__(f"stopped before its end: {reason}; what is sampled is kept, run the same command again")
        self.reason = reason
        self.advanced = advanced
        """It got further than an earlier try."""


class TooLarge(LambdaHatError):
    """A run that needs more memory than its rank has; it was not started."""


class BuildFailed(LambdaHatError):
    """A target could not be built from a valid configuration (training diverged, for example)."""


class LaunchError(LambdaHatError):
    """The MPI world is not the one that the launcher was asked for; nothing was started."""

    exit_code = EXIT_USAGE


class SchedulerError(LambdaHatError):
    """The cluster's scheduler refused a job or a question; its own words are in the message."""

    exit_code = EXIT_USAGE


def nearest(word: str, valid: Iterable[str]) -> str:
    """`did you mean ...? valid: ...` for a mistyped word."""
    options = sorted(map(str, valid))
    close = difflib.get_close_matches(str(word), options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}valid: {', '.join(options)}"


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run the body of a command, turning the package's own errors into one message and an exit status.

    Other exceptions keep their traceback: they are defects of ours, not of the input.
    """
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    except LambdaHatError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        code = EXIT_FAILED
    sys.exit(code)
