import jax.numpy as jnp
import pytest

from lambda_hat.engine.windows import NOWHERE, Windows


@pytest.mark.parametrize(
    ("last_end", "ends"),
    [(0, []), (1, [1]), (10, [10]), (16, [16]), (40, [20, 40]), (1000, [31, 62, 125, 250, 500, 1000])],
)
def test_windows_double(last_end, ends):
    assert Windows(last_end).ends == ends


@pytest.mark.parametrize("last_end", [0, 5, 40, 1000])
@pytest.mark.parametrize("rows", [1, 7, 2**31])
def test_every_transition_is_in_one_window_that_keeps_no_more_than_its_rows(last_end, rows):
    windows = Windows(last_end, rows)
    kept = {}
    for step in range(last_end + 50):
        window, end = windows.at(step)
        assert end == next((e for e in windows.ends if e > step), None)
        kept.setdefault(end, []).append(int(window.place(jnp.uint32(step))))
    assert set(kept.pop(None)) == {NOWHERE}
    for end, of_window in kept.items():
        places = [place for place in of_window if place != NOWHERE]
        assert places == list(range(len(places))) and 1 <= len(places) <= rows, end
        assert of_window[0] == 0 and (rows < len(of_window) or places == of_window)
