from typing import NamedTuple
class SF(NamedTuple):
    nu: float; nu_std_error: float; functional_variance: float; waic: float
def singular_fluctuation(rows, alive, beta): raise NotImplementedError
