"""The installation that users have. Tests that start their commands start them there."""

from __future__ import annotations

import os
import sys

USERS_PYTHON = os.environ.get("LAMBDA_HAT_USERS_PYTHON", sys.executable)
"""Its interpreter. In CI it is that of a fresh environment with what the README's first command installs, and none of
the packages that only tests need; elsewhere the one that runs the tests."""
