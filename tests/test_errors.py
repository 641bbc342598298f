"""How a command ends: by its own errors, by a Ctrl-C wherever it comes, and by defects."""

import itertools
import sys
from collections.abc import Callable

import omegaconf._utils
import pytest
from omegaconf import OmegaConf

from lambda_hat.config import BUILD_SCHEMAS
from lambda_hat.errors import ConfigError, guarded, is_interruption, run_command

INTERRUPTED = "interrupted; run the same command again to continue\n"


def a_failed_clean_up() -> int:
    """A Ctrl-C that a clean-up replaces by an error of its own, which a caller words anew."""
    try:
        try:
            raise KeyboardInterrupt
        finally:
            _ = {}["not set yet"]
    except KeyError as error:
        raise ConfigError("target: unknown") from error


def ended(main: Callable[[], int]) -> object:
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code


@pytest.fixture(autouse=True)
def _the_hook_of_python(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def test_a_ctrl_c_behind_another_error_is_a_ctrl_c(capsys):
    assert ended(a_failed_clean_up) == 130
    assert capsys.readouterr().err == INTERRUPTED
    with pytest.raises(KeyboardInterrupt):
        guarded(a_failed_clean_up, lambda error: 0)


def test_an_error_beside_a_ctrl_c_is_none():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert not is_interruption(ConfigError("made, not raised"))
    assert not is_interruption(None)


def test_a_ctrl_c_at_any_step_of_reading_a_configuration_is_a_ctrl_c(monkeypatch, capsys):
    """OmegaConf's own clean-up fails at some of the steps, with an AttributeError."""
    schema, step = BUILD_SCHEMAS["dln"], omegaconf._utils.is_union_annotation
    seen: list[type[BaseException]] = []

    def interrupting(at: int) -> Callable[[object], bool]:
        calls = itertools.count(1)

        def interrupted(annotation: object) -> bool:
            if next(calls) == at:
                raise KeyboardInterrupt
            return step(annotation)

        return interrupted

    def read() -> int:
        try:
            OmegaConf.structured(schema)
        except BaseException as error:
            seen.append(type(error))
            raise
        return 0

    for at in range(1, 500):
        monkeypatch.setattr(omegaconf._utils, "is_union_annotation", interrupting(at))
        if ended(read) == 0:
            break
        assert capsys.readouterr().err == INTERRUPTED
    assert 10 < len(seen) < 499
    assert AttributeError in seen and KeyboardInterrupt in seen


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
