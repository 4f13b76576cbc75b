"""One graph in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError

Arrays = dict[str, NDArray[Any]]


class Session:
    """An ONNX file, opened.

    Args:
        path: the file.
        threads: CPU threads of one call.

    Attributes:
        inputs: names of the inputs.
        outputs: names of the outputs.

    Raises:
        UserError: onnxruntime is not installed, or the file cannot be opened.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                "exported models require onnxruntime, which is not installed",
                remedy="Run: pip install 'retort-asr[runtime]'",
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises exceptions of its own for each of its codes
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"ONNX Runtime cannot open it ({reason})",
                where=path,
                remedy="Export it again, or install a later onnxruntime",
            ) from None
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, arrays: Arrays) -> Arrays:
        """Run the graph; arrays that it does not take are ignored.

        An input `keys_3` that is not given is part 3 of `keys`.
        """
        given = {name: np.ascontiguousarray(_found(arrays, name)) for name in self.inputs}
        return dict(zip(self.outputs, self._session.run(None, given)))


def _found(arrays: Arrays, name: str) -> NDArray[Any]:
    if name in arrays:
        return arrays[name]
    whole, _, number = name.rpartition("_")
    return arrays[whole][int(number)]
