"""Writes the vectors beside it: blocks of every quantised GGUF type, and what they decode to.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install gguf==0.19.0 numpy
    /tmp/venv/bin/python worker/engine/tests/quants/make.py

Each file holds `rows` rows of blocks as GGUF stores them, then the same elements as the `gguf`
package decodes them, f32, little endian. Quants are random; the scales take turns through what
half precision can hold. The result is the same every time.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

ROWS = 8
# Elements in a row: whole blocks of either size.
COLUMNS = {32: 128, 256: 256}
# Where each type keeps its half-precision numbers: the scale, and the minimum if it has one.
HALVES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}
# What a half can be: zeros, the largest, the least normal, the least denormal, and usual ones.
EXTREMES = [-0.0, -65504.0, 5.96e-8, 0.0123, 65504.0, -5.96e-8, 0.0, 6.104e-5, -6.104e-5, -0.0456]


def blocks_of(kind: Type, rng: np.random.Generator) -> np.ndarray:
    """[ROWS, bytes in a row]: random blocks with finite scales, the first all zero, the last all ones."""
    length, size = GGML_QUANT_SIZES[kind]
    count = ROWS * COLUMNS[length] // length
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    blocks[0] = 0
    blocks[-1] = 0xFF
    for place, at in enumerate(HALVES[kind]):
        for index in range(1, count):
            # Scale and minimum go through the list at different speeds, so that they meet in all ways.
            turn = index * (1 + 2 * place) + 3 * place
            usual = index % 3 == 0
            value = rng.normal(0, 0.02) if usual else EXTREMES[turn % len(EXTREMES)]
            blocks[index, at : at + 2] = np.array([value], dtype="<f2").view(np.uint8)
    return blocks.reshape(ROWS, -1)


def main() -> None:
    for kind in HALVES:
        blocks = blocks_of(kind, np.random.default_rng(int(kind)))
        expected = dequantize(blocks, kind).astype("<f4")
        assert np.isfinite(expected).all(), kind
        path = Path(__file__).with_name(f"{kind.name.lower()}.bin")
        path.write_bytes(blocks.tobytes() + expected.tobytes())
        print(f"{path.name}: {blocks.size} bytes of blocks, {expected.size} elements")


if __name__ == "__main__":
    main()
