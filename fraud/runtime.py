"""Fitted models run by ONNX Runtime; no torch here, and nothing executes on load but the model's own arithmetic.

What a model reads and gives is checked once, when it is made from bytes. One thread unless told otherwise, and threads
that wait sleep: a service scales by requests, and a spinning thread would take the other requests' processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fraud.errors import BundleError

TokenBatch = npt.NDArray[np.int64]
LogitArray = npt.NDArray[np.float32]


class WindowModel:
    """A network over windows. n_fields: F."""

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        self._session = _session(content, "window.onnx", threads)
        _check(self._session, "window.onnx", inputs={"tokens": ("int64", 3)}, outputs={"logits": ("float", 2)})
        self.n_fields = _last_dimension(self._session, "window.onnx", "tokens")

    def logits(self, tokens_BTF: TokenBatch) -> LogitArray:
        """Return float32 [B, T]: the logit of each event of each window, from the events of the window up to it."""
        return _run(self._session, "window.onnx", ["logits"], {"tokens": tokens_BTF})[0]


class StepModel:
    """A network one event at a time. n_fields: F; n_numbers: S, the float32 numbers of one user's state."""

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        self._session = _session(content, "step.onnx", threads)
        _check(
            self._session,
            "step.onnx",
            inputs={"tokens": ("int64", 2), "state": ("float", 2)},
            outputs={"logits": ("float", 1), "next_state": ("float", 2)},
        )
        self.n_fields = _last_dimension(self._session, "step.onnx", "tokens")
        self.n_numbers = _last_dimension(self._session, "step.onnx", "state")

    def initial_state(self, n_users: int) -> LogitArray:
        """Return the state float32 [B, S] of users who have done nothing yet."""
        return np.zeros((n_users, self.n_numbers), dtype=np.float32)

    def step(self, tokens_BF: TokenBatch, state_BS: LogitArray) -> tuple[LogitArray, LogitArray]:
        """Return (state_BS, logit_B) after one more event of each user."""
        feed = {"tokens": tokens_BF, "state": state_BS}
        logit_B, next_BS = _run(self._session, "step.onnx", ["logits", "next_state"], feed)
        return next_BS, logit_B


class TreeModel:
    """Boosted trees over rows of features. n_features: C."""

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        self._session = _session(content, "boosting.onnx", threads)
        _check(self._session, "boosting.onnx", inputs={"features": ("float", 2)}, outputs={"logits": ("float", 2)})
        self.n_features = _last_dimension(self._session, "boosting.onnx", "features")

    def logits(self, features_RC: npt.NDArray[np.float32]) -> LogitArray:
        """Return float32 [R] of float32 rows, NaN = missing."""
        return _run(self._session, "boosting.onnx", ["logits"], {"features": features_RC})[0][:, 0]


_STATE = ort.capi.onnxruntime_pybind11_state
_REFUSALS = (
    _STATE.Fail,
    _STATE.InvalidArgument,
    _STATE.InvalidGraph,
    _STATE.InvalidProtobuf,
    _STATE.NoModel,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
)


def _run(session: Any, name: str, outputs: list[str], feed: dict[str, Any]) -> list[Any]:  # Any: onnxruntime, arrays
    """Return the outputs; raise BundleError where the model does not take what the rest of the bundle makes."""
    try:
        return session.run(outputs, feed)
    except _REFUSALS as error:
        first_line = str(error).splitlines()[0]
        raise BundleError(f"{name}: cannot read what the bundle's vocabulary makes ({first_line})") from None


def _session(content: bytes, name: str, threads: int) -> Any:  # Any: onnxruntime has no types
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # the error is raised; the same text on stderr would be its second copy
    # A pattern of memory is kept for each shape seen, and windows come in many.
    options.enable_mem_pattern = False
    # The arena of a session never shrinks from the largest batch it has seen, its check included. Without: 28 MB
    # less of a fusion of three networks and trees in a service, as fast on one window, 0 to 7 % slower over a log.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        first_line = str(error).splitlines()[0]
        raise BundleError(f"{name}: not a model that ONNX Runtime {ort.__version__} can run ({first_line})") from None


def _check(
    session: Any,  # Any: onnxruntime has no types
    name: str,
    *,
    inputs: dict[str, tuple[str, int]],
    outputs: dict[str, tuple[str, int]],
) -> None:
    for kind, nodes, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        found = {node.name: (node.type.removeprefix("tensor(").removesuffix(")"), len(node.shape)) for node in nodes}
        if found != expected:
            raise BundleError(f"{name}: {kind} {_listed(found)}; expected {_listed(expected)}")


def _listed(values: dict[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} {kind} of {rank} dimensions" for name, (kind, rank) in values.items())


def _last_dimension(session: Any, name: str, value: str) -> int:  # Any: onnxruntime has no types
    size = next(node.shape[-1] for node in session.get_inputs() if node.name == value)
    if not isinstance(size, int):
        raise BundleError(f"{name}: the last dimension of {value} is {size!r}; expected a fixed size")
    return size
