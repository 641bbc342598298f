"""What is recorded of a build or a run that did not come to its end."""

import json

import pytest

from lambda_hat.errors import BuildFailed, Paused, StoreUnwritable
from lambda_hat.execute.failure_record import recording_failure


@pytest.mark.parametrize(("error", "expected"), [(BuildFailed("no minimum"), True), (ZeroDivisionError("by 0"), False)])
def test_a_failure_is_recorded_and_raised_again(tmp_path, error, expected):
    with pytest.raises(type(error)), recording_failure(tmp_path, {"rank": 3}):
        raise error
    record = json.loads((tmp_path / "error.json").read_text())
    assert (record["type"], record["message"]) == (type(error).__name__, str(error))
    assert (record["expected"], record["rank"]) == (expected, 3)
    assert "raise error" in record["traceback"]


CUT_SHORT = AttributeError("a clean-up that a Ctrl-C cut short")
CUT_SHORT.__context__ = KeyboardInterrupt()


@pytest.mark.parametrize(
    "error", [Paused("the time is up", True), StoreUnwritable("no space"), KeyboardInterrupt(), CUT_SHORT]
)
def test_what_is_no_failure_of_the_run_leaves_no_record(tmp_path, error):
    with pytest.raises(type(error)), recording_failure(tmp_path):
        raise error
    assert list(tmp_path.iterdir()) == []
