"""Makes tests/golden/fixtures/kernels/nf4.safetensors: weights through bitsandbytes' NF4 with double quantisation.

Run by hand, and only when the format changes; the tests read what is committed.
Python 3.11 with torch==2.15.0 bitsandbytes==0.50.2 safetensors==0.8.0:

    python tests/golden/nf4.py

What bitsandbytes does on x86-64, bit for bit; every number is f32, and every operation is rounded by itself unless it
is called fused. A weight is read row by row as one flat list, in blocks of 64.

The codes.
  absmax of a block is its largest magnitude. A whole block is scaled by w * (1 / max(absmax, 1e-38)): a reciprocal,
  then a product. The block that is left when the length is no multiple of 64 is scaled by a division, w / absmax, and
  its absmax is itself raised to 1e-38 at least. Both are then clamped to -1..1.
  The bounds are (level[i] + level[i + 1]) / 2. The code is the number of bounds that are strictly less than the scaled
  value: a value on a bound takes the lower code. Zero, and so every value of a block of zeros, has code 7.
  Element 2i is the high nibble of byte i, element 2i + 1 the low one; an odd length is padded with code 7.

The offset is sum(absmax) / count. The sum runs in eight lanes (for every instruction set; with 32,768 blocks or more
only on one thread):
  1. Rows of eight: absmax[8r .. 8r + 8]. There are R = count / 8 of them, whole ones only.
  2. Row r, for r < R - R % 4, is added to the accumulator r % 4, so every accumulator takes Q = R / 4 rows. It does so
     in levels: with p = max(4, ceil(log2(Q)) / 4) rounded down, level 0 sums 2^p rows, is then added to level 1 and
     starts again from zero; when 2^p of those have been added, level 1 goes to level 2 likewise, and so on up to
     level 3. At the end levels 1, 2, 3 are added to level 0, in this order.
  3. The rows left over are added to accumulator 0, then accumulators 1, 2, 3 to accumulator 0: eight lanes are left.
  4. Starting from zero, the elements beyond the last whole row are added in order, then lanes 0 to 7.
  With fewer than eight blocks steps 1 to 3 run over single elements in place of rows, and that one lane is the sum.

The codes of absmax are those of absmax - offset, in blocks of 256.
  absmax2 of a block is its largest magnitude; a block of zeros has code 0 throughout. A value is scaled by
  x * (1 / absmax2), clamped to -1..1, and looked up in a table of 65,536 entries at the index
  fused((v + 1) * 0.5 * 65535 + 0.5), truncated, where only the last product and sum are fused. Entry i of the table is
  the number of bounds 0.5 * (map[k] + map[k + 1]) strictly less than -1 + 2i / 65535, computed as product, quotient,
  sum. So about one value in a thousand near a bound takes the neighbour of its nearest level.

The map of 256 levels, sorted: 0, 1, and for i from 0 to 6 the values +-(10^(i - 6) * m), with m the midpoints
(b[k] + b[k + 1]) / 2 of linspace(0.1, 1, 2^i + 1). There is no -1: the first level is -0.9929687. How torch rounds
linspace depends on its vector code, so levels computed in another way are off by one unit in the last place in places:
take them from `nested_quant_map`.

Reading back. absmax = map[code] * absmax2 + offset, not fused; w = level[code] * absmax. The zeros of a block of zeros
can be -0, since its absmax read back need not be positive. Where the processor has AVX-512, bitsandbytes 0.50.2 takes
the wrong absmax for a weight whose rows are a multiple of 16 but not of 64; every weight here is one row to it.
"""

from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "fixtures" / "kernels"
generator = torch.Generator().manual_seed(21)


def weight(rows, columns):
    """Rows of very different scales, so that absmax varies, and one block of zeros."""
    scales = torch.randn(rows, 1, generator=generator).exp()
    drawn = torch.randn(rows, columns, generator=generator) * scales
    drawn.view(-1)[128:192] = 0
    return drawn


def quantised(name, value):
    row = value.reshape(1, -1)
    codes, state = quantize_4bit(row, blocksize=64, compress_statistics=True, quant_type="nf4")
    same, plain = quantize_4bit(row, blocksize=64, compress_statistics=False, quant_type="nf4")
    assert torch.equal(codes, same)
    return {
        name: value,
        f"{name}.codes": codes.flatten(),
        f"{name}.absmax": state.absmax,
        f"{name}.nested_absmax": state.state2.absmax,
        f"{name}.nested_offset": state.offset.reshape(1),
        f"{name}.plain_absmax": plain.absmax,
        f"{name}.dequantised": dequantize_4bit(codes, state).reshape(value.shape),
        "quant_map": state.code,
        "nested_quant_map": state.state2.code,
    }


if __name__ == "__main__":
    weights = {"w0": weight(64, 96), "w1": weight(200, 192), "w2": weight(30, 50)}
    # The first block of w0 has values exactly on the bounds between levels.
    levels = quantised("w0", weights["w0"])["quant_map"]
    weights["w0"].view(-1)[:16] = torch.cat([(levels[:-1] + levels[1:]) / 2, torch.ones(1)])
    weights["w0"].view(-1)[16:64].clamp_(-1, 1)
    tensors = {}
    for name, value in weights.items():
        tensors |= quantised(name, value)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FOLDER / "nf4.safetensors")
