"""The scripts that run studies, and what they share.

While a script of this folder imports its modules, Ctrl-C ends it as it ends any other command, with no traceback;
`lambda_hat.errors.run_command` listens again. They are not looked for in the user's folder. An installation without the
packages that the script needs is told so.
"""

import signal
import sys
from pathlib import Path

import mpi  # noqa: F401, now, because its folder leaves the path
from lambda_hat.checkout import SCRIPTS
from lambda_hat.errors import MissingExtra, require
from lambda_hat.user_folder import is_script_of, tidy_path

_folder = Path(__file__).resolve().parent
if is_script_of(_folder):
    tidy_path(_folder)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _script = Path(sys.argv[0]).name
        _names = {path.name: f"lambda-hat {name}" for name, path in SCRIPTS.items()}
        require(_names.get(_script, _script), ("parsl", "mpi4py", "rich"))
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
