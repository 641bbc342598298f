"""Shell lines around Parsl's processes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from lambda_hat.checkout import ROOT

PLAIN_PATH = re.compile(r"[\w./+@:-]+")
"""A path that needs no quotes in a shell."""
OWN_TMPDIR = """\
leave() {
  over=; [ ! -e "$LAMBDA_HAT_TMPDIR/over" ] || over=yes
  for each in $watcher $giver; do kill "$each" 2> /dev/null; done
  rm -rf "$LAMBDA_HAT_TMPDIR"
  for process in /proc/[0-9]*; do
    grep -qsz multiprocessing "$process/cmdline" || continue
    grep -qszxF "TMPDIR=$LAMBDA_HAT_TMPDIR" "$process/environ" && kill -9 "${process#/proc/}"
  done
  [ -z "$over" ] || exit 0
}
base=${TMPDIR:-/tmp}; [ ${#base} -le 64 ] || base=/tmp
LAMBDA_HAT_TMPDIR=$(mktemp -d "$base/lh.XXXXXX") && trap leave EXIT
export LAMBDA_HAT_TMPDIR TMPDIR="${LAMBDA_HAT_TMPDIR:-$base}"\
"""
"""Lines of a block's first shell: a temporary folder for the workers. The shell outlives the workers and cleans up
after them, since signals end them before they could. A block that was given back has ended well: its exit status is 0,
whatever its workers died of. Its folder's name is short, because a socket's path has at most
107 characters. A pool that is killed leaves a helper of Python's multiprocessing behind, which would wait for ever."""
END_POOLS = """\
  for process in /proc/[0-9]*; do
    grep -qsz process_worker_pool "$process/cmdline" || continue
    grep -qszxF "TMPDIR=$LAMBDA_HAT_TMPDIR" "$process/environ" && kill -9 "${{process#/proc/}}"
  done"""
WATCHER = f"""
end_without_driver() {{{{
  last='' same=0
  while [ $same -lt 4 ]; do
    sleep 10
    now=$(cat {{lease}})
    [ "$now" = "$last" ] && same=$((same + 1)) || same=0
    last=$now
  done
{END_POOLS}
}}}}
end_without_driver > /dev/null 2>&1 &
watcher=$!
"""
"""Lines of the same shell: they end the worker pools of a driver that has died. A pool that starts when the interchange
has died waits for an answer for ever, and would keep its nodes until the walltime. A driver that lives rewrites its
lease every few seconds."""
GIVEN_BACK = f"""
end_given_back() {{{{
  job=${{{{PBS_JOBID:-$SLURM_JOB_ID}}}}
  until [ -e "$LAMBDA_HAT_TMPDIR/no-good-node" ] || grep -qsF "\\"end ${{{{job%%.*}}}}\\"" {{lease}}; do sleep 1; done
  : > "$LAMBDA_HAT_TMPDIR/over"
{END_POOLS}
}}}}
end_given_back > /dev/null 2>&1 &
giver=$!
"""
"""Lines of the same shell: they end the worker pools of a block that its driver gives back, which says so in its lease,
and of one without a good node. A job that the scheduler had to end would count as one that failed."""
TO_FILE = 'file=$0; { : >> "$file"; } 2> /dev/null || file=/dev/null; exec "$@" 2>> "$file"'
"""Of `sh -c`: runs a command whose stderr goes to a file; nowhere, if that file cannot be made."""


def watcher_lines(lease: Path) -> str:
    """WATCHER and GIVEN_BACK for the driver of this lease."""
    return (WATCHER + GIVEN_BACK).format(lease=shlex.quote(str(lease)))


def with_checkout(environ: Mapping[str, str]) -> str:
    """The `PYTHONPATH` of an environment, with `flows/` and `mpi/` first."""
    inherited = environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])


def python_path_line() -> str:
    """The line that puts `flows/` and `mpi/` first on the path of Python."""
    return f"export PYTHONPATH={shlex.quote(with_checkout(os.environ))}"
