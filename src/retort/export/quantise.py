"""Quantisation of the matrix products of an ONNX file."""

from __future__ import annotations

import logging
from pathlib import Path

from retort.export.record import require


def quantise(path: Path) -> None:
    """Store the weights of matrix products in 8 bits, in place, with a scale for every 32 values.

    The inputs of the products are quantised while the model runs, with scales of their own for every 32 values, which
    is more exact than one scale for a whole tensor. Products of two computed tensors (attention) and convolutions stay
    in float32.

    Raises:
        UserError: the packages are not installed.
    """
    require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=8)
    quantiser = MatMulNBitsQuantizer(onnx.load(str(path)), algo_config=config)
    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    quantiser.process()
    quantiser.model.save_model_to_file(str(path), False)
