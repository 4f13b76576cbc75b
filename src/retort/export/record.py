"""Recording of modules as ONNX files.

torch's exporter by tracing records the graphs of a model in seconds. The one by `torch.export` takes minutes for them,
nearly all of it for the algebra of dynamic sizes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.export.replacements import explicit_attention
from retort.runtime.session import Session

OPSET = 18
"""Version of ONNX's operators; ONNX Runtime 1.14 and later have it."""
_CLOSE = 1e-3
"""Largest difference of a graph from its module, absolute and relative."""
_EXTRA = "pip install 'retort-asr[export]'"


def require(*packages: str) -> None:
    """Check that packages of the extra `export` are installed.

    Raises:
        UserError: one is not.
    """
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"the export requires {package}, which is not installed", remedy=f"Run: {_EXTRA}")


def record(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    fixed: Mapping[str, Sequence[int]],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    other: Mapping[str, Tensor],
) -> None:
    """Record `module(*inputs.values())` as an ONNX file, and check it with inputs of other sizes.

    Args:
        module: in eval mode.
        inputs: example inputs by name, in the order of the module's arguments.
        outputs: names of its results.
        fixed: for each input, the dimensions whose size is that of the example; the others are dynamic, and at least 2
            in the example.
        metadata: entries of the file's metadata.
        other: inputs whose dynamic dimensions have other sizes, for the check.

    Raises:
        UserError: the packages are not installed, or the graph gives other results than the module.
    """
    require("onnx", "onnxruntime")
    import onnx

    axes = {
        name: {axis: f"{name}_{axis}" for axis in range(tensor.dim()) if axis not in fixed.get(name, ())}
        for name, tensor in inputs.items()
    }
    with warnings.catch_warnings(), explicit_attention(), torch.no_grad():
        warnings.simplefilter("ignore")
        recorded = io.BytesIO()
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            recorded,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    model = onnx.load_from_string(recorded.getvalue())
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    with explicit_attention(), torch.no_grad():
        expected = module(*other.values())
    _check(path, other, expected if isinstance(expected, tuple) else (expected,))


def _check(path: Path, inputs: Mapping[str, Tensor], expected: Sequence[Tensor]) -> None:
    """Raise an error if a graph does not give the expected results."""
    found = Session(path)({name: tensor.numpy() for name, tensor in inputs.items()})
    for name, wanted in zip(found, expected, strict=True):
        if found[name].shape != tuple(wanted.shape) or not np.allclose(
            found[name], wanted.numpy(), atol=_CLOSE, rtol=_CLOSE
        ):
            raise UserError(
                f"the recorded graph gives another {name} than the model, for inputs of other sizes",
                where=path,
                remedy="Report it with the recipe of the model; this encoder or decoder cannot be exported yet",
            )
