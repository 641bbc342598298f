"""The scripts that run studies, and what they share.

While a script of this folder imports its modules, Ctrl-C ends it as it ends any other command, with no traceback;
`lambda_hat.errors.run_command` listens again. An installation without the packages that the script needs is told so.
"""

import signal
import sys
from pathlib import Path

from lambda_hat.checkout import SCRIPTS
from lambda_hat.errors import MissingExtra, require

_script = getattr(sys.modules["__main__"], "__file__", None)
if _script is not None and Path(_script).resolve().parent == Path(__file__).resolve().parent:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _names = {path.name: f"lambda-hat {name}" for name, path in SCRIPTS.items()}
        require(_names.get(Path(_script).name, Path(_script).name), ("parsl", "mpi4py", "rich"))
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
