"""Graphs run by onnxruntime or by OpenVINO, one interface for both."""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clab_d2.errors import ConfigError, DataError
from clab_d2.optional import import_optional
from clab_d2.runtime.onnx_bytes import refuse_external_data

#: Names of the runtimes, the first that is installed is the default.
RUNTIMES = ("onnxruntime", "openvino")


class GraphSession(ABC):
    """A graph, ready to run.

    Attributes:
        inputs, outputs: names.
    """

    inputs: list[str]
    outputs: list[str]

    @abstractmethod
    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Inputs that the graph does not have are left out."""


class ONNXRuntimeSession(GraphSession):
    """By onnxruntime."""

    def __init__(self, model: bytes, threads: int, device: str) -> None:
        ort = import_optional("onnxruntime", "export", "an exported model")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if device.startswith("cuda"):
            providers.insert(0, "CUDAExecutionProvider")
        self._session = ort.InferenceSession(model, options, providers=providers)
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        taken = {name: feed[name] for name in self.inputs}
        return dict(zip(self.outputs, self._session.run(None, taken), strict=True))


class OpenVINOSession(GraphSession):
    """By OpenVINO, in single precision."""

    def __init__(self, model: bytes, threads: int, device: str) -> None:
        ov = import_optional("openvino", "export", "an exported model")
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        core = ov.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
        self._request = compiled.create_infer_request()
        self.inputs = [port.get_any_name() for port in compiled.inputs]
        self.outputs = [port.get_any_name() for port in compiled.outputs]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        taken = {name: np.ascontiguousarray(feed[name]) for name in self.inputs}
        self._request.infer(taken, share_inputs=True)
        # Copies: the next call writes over the tensors.
        return {
            name: self._request.get_tensor(name).data.copy() for name in self.outputs
        }


def choose_runtime(name: str | None) -> str:
    """The runtime of that name, or the first one that is installed.

    Raises:
        ConfigError: there is no such runtime, or none is installed.
    """
    if name is not None:
        if name not in RUNTIMES:
            raise ConfigError(f"runtime {name!r}: choose one of {', '.join(RUNTIMES)}")
        import_optional(name, "export", f"runtime {name}")
        return name
    for runtime in RUNTIMES:
        if importlib.util.find_spec(runtime) is not None:
            return runtime
    raise ConfigError(
        "an exported model needs onnxruntime or OpenVINO: pip install onnxruntime (or openvino)"
    )


def open_graph(
    path: str | os.PathLike[str], runtime: str, threads: int = 0, device: str = "cpu"
) -> GraphSession:
    """Read a graph.

    Args:
        path: an ONNX file, which may come from a stranger: it can't have another file read.
        runtime: one of :data:`RUNTIMES`.
        threads: of the runtime; 0 lets it choose.
        device: "cpu", or "cuda" with an onnxruntime made for it.

    Raises:
        ConfigError: the runtime is not installed.
        DataError: the file is missing, or no graph that the runtime can read.
    """
    path = Path(path)
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); export the model anew"
        ) from None
    refuse_external_data(model, path)
    session = ONNXRuntimeSession if runtime == "onnxruntime" else OpenVINOSession
    try:
        return session(model, threads, device)
    except ConfigError:
        raise
    except Exception as error:  # whatever a runtime makes of a damaged file
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: no graph that {runtime} can read ({reason}); export the model anew"
        ) from error
