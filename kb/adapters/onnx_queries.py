"""A second form of an exported model, for queries: its weights as 8-bit integers.

A query is short, so most of the time of embedding one goes into reading weights from memory. With
weights of a quarter of the size, each block of them with its scale, it takes half as long. A long
text gains nothing, so documents keep the float32 form.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx

_BITS = 8
_BLOCK = 128
"""Weights that share a scale. 32 is a little more exact and a quarter slower."""
_INT8_INPUTS = 4
"""Code of the operator for inputs that are rounded to 8 bits, too, block by block."""


def write_query_model(source: Path, target: Path) -> None:
    """Write the model of file `source` with the weights of its matrix products in 8 bits.

    The operator is ONNX Runtime's MatMulNBits.
    """
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    nbits.logger.setLevel(logging.WARNING)  # it tells of every node
    config = nbits.DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK, is_symmetric=True, accuracy_level=_INT8_INPUTS, bits=_BITS
    )
    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)
