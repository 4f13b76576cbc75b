"""Recording of modules as ONNX files.

torch's exporter by tracing records the graphs of a model in seconds. The one by `torch.export` takes minutes for them,
nearly all of it for the algebra of dynamic sizes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.export.replacements import explicit_attention

OPSET = 18
"""Version of ONNX's operators; ONNX Runtime 1.14 and later have it."""
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
) -> None:
    """Record `module(**inputs)` as an ONNX file.

    Args:
        module: in eval mode.
        inputs: example inputs by name, in the order of the module's arguments.
        outputs: names of its results.
        fixed: for each input, the dimensions whose size is that of the example; the others are dynamic, and at least 2
            in the example.
        metadata: entries of the file's metadata.

    Raises:
        UserError: the packages are not installed.
    """
    require("onnx")
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
