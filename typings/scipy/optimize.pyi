from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

class OptimizeResult:
    x: npt.NDArray[np.float64]
    success: bool

def minimize(
    fun: Callable[[npt.NDArray[np.float64]], tuple[float, npt.NDArray[np.float64]]],
    x0: npt.NDArray[np.float64],
    *,
    jac: bool,
    method: str,
    bounds: Sequence[tuple[float | None, float | None]],
    options: Mapping[str, float],
) -> OptimizeResult: ...
def brentq(f: Callable[[float], float], a: float, b: float) -> float: ...
