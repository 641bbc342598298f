from __future__ import annotations

import pytest

from tests.tuning.worlds import World


@pytest.fixture
def world():
    return World()
