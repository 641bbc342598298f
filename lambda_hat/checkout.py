"""Where the scripts lie that run studies: in the checkout that this package is installed from."""

from __future__ import annotations

from pathlib import Path

from lambda_hat.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def flow_script(name: str, caller: str, root: Path = ROOT) -> Path:
    """The path of `flows/<name>`.

    Args:
        name: The file's name.
        caller: What the user called, for the message.
        root: The checkout.

    Raises:
        ConfigError: There is no checkout.
    """
    script = root / "flows" / name
    if not script.is_file():
        raise ConfigError(
            f"{caller}: runs {script}, which is not there: this package was installed without its checkout; "
            f"in a checkout write pip install -e '.[mpi]', or python flows/{name}"
        )
    return script
