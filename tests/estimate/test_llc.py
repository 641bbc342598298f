import numpy as np

from lambda_hat.estimate.llc import llc_from_losses


def test_is_n_beta_times_the_excess_loss():
    losses = np.array([[0.5, 0.6], [0.4, 0.5]])
    np.testing.assert_allclose(llc_from_losses(losses, 0.5, 10.0), [[0.0, 1.0], [-1.0, 0.0]])


def test_float32_losses_are_subtracted_in_float64():
    losses = np.float32([1.0])
    assert llc_from_losses(losses, 1.0 - 1e-9, 1e9)[0] == np.float64(1e9) * (1.0 - (1.0 - 1e-9))


def test_zero_is_a_value():
    assert llc_from_losses(np.zeros(3), 0.0, 5.0).tolist() == [0.0, 0.0, 0.0]
