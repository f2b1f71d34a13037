//! 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314, section 3), in the layout of
//! bitsandbytes: blocks of 64 weights along the flattened row-major matrix, each with its largest
//! magnitude; those magnitudes, less their mean, again in blocks of 256 as 8-bit codes of the signed
//! dynamic map. A weight takes 4 + 8/64 + 32/(64·256) = 4.127 bits. Codes and constants have the bits that
//! bitsandbytes 0.50 gives them on a CPU, rounding for rounding, so that a base quantised here is one
//! quantised there.

use std::ops::Range;
use std::sync::LazyLock;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::vector::vectorized;

/// Weights that share one magnitude.
pub const BLOCK: usize = 64;
/// Magnitudes that share one second-level magnitude.
pub const NESTED_BLOCK: usize = 256;
/// Weights per parallel task: whole blocks of both levels.
const CHUNK: usize = BLOCK * NESTED_BLOCK;

/// The sixteen levels, ascending: quantiles of the normal distribution, made symmetric and with an exact zero.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The signed dynamic map, ascending: seven decades from 10⁻⁶ to 1, decade i cut into 2^i steps between
/// a tenth and one, of which the middles count (Dettmers 2015, arXiv 1511.04561), and 0 and 1.
pub static DYNAMIC_MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut map = vec![0.0, 1.0];
    for decade in 0..7 {
        // torch.linspace: from both ends towards the middle, each value rounded once.
        let steps = 1usize << decade;
        let step = f64::from((1.0f32 - 0.1) / steps as f32);
        let bound = |i: usize| {
            let (from_start, from_end) = (f64::from(0.1f32) + step * i as f64, 1.0 - step * (steps - i) as f64);
            (if i < steps.div_ceil(2) { from_start } else { from_end }) as f32
        };
        let size = 10f64.powi(decade - 6) as f32;
        for i in 0..steps {
            let middle = (bound(i) + bound(i + 1)) / 2.0;
            map.extend([size * middle, -(size * middle)]);
        }
    }
    map.sort_by(f32::total_cmp);
    map.try_into().unwrap_or([0.0; 256])
});

/// A matrix in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    /// Rows and columns.
    shape: (usize, usize),
    /// Two weights a byte, the first in the high half.
    codes: Vec<u8>,
    /// One a block: the place of its magnitude in [`DYNAMIC_MAP`].
    magnitudes: Vec<u8>,
    /// One for every 256 blocks.
    nested: Vec<f32>,
    /// The mean of the magnitudes.
    offset: f32,
    /// Its copy on a GPU, made at the first use there.
    #[cfg(feature = "cuda")]
    on_device: super::cuda::OnDevice,
}

/// What a matrix in NF4 consists of, as a file holds it; see [`Nf4`].
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Two weights a byte, the first in the high half.
    pub codes: &'a [u8],
    /// One a block.
    pub magnitudes: &'a [u8],
    /// One for every 256 blocks.
    pub nested: &'a [f32],
    /// The mean of the magnitudes.
    pub offset: f32,
}

/// Bytes that so many values take in NF4: half a byte each, a magnitude of one byte a block, and an f32 a nested block.
pub fn nf4_bytes(values: u64) -> u64 {
    values / 2 + values / BLOCK as u64 + 4 * (values / (BLOCK * NESTED_BLOCK) as u64)
}

impl Nf4 {
    /// Quantises `rows · columns` values.
    ///
    /// # Errors
    /// When there are not that many, or one is not finite.
    pub fn quantize(values: &[f32], rows: usize, columns: usize) -> Result<Self> {
        if values.len() != rows * columns || values.is_empty() {
            bail!("nf4: {} values for a matrix of {rows} rows and {columns} columns", values.len());
        }
        let exact: Vec<f32> =
            values.par_chunks(CHUNK).flat_map_iter(|chunk| chunk.chunks(BLOCK).map(largest)).collect();
        if let Some(block) = exact.iter().position(|magnitude| !magnitude.is_finite()) {
            bail!("nf4: a value between {} and {} is not finite", block * BLOCK, (block + 1) * BLOCK);
        }
        let mut codes = vec![0u8; values.len().div_ceil(2)];
        codes.par_chunks_mut(CHUNK / 2).zip(values.par_chunks(CHUNK)).zip(exact.par_chunks(NESTED_BLOCK)).for_each(
            |((codes, values), exact)| {
                let blocks = codes.chunks_mut(BLOCK / 2).zip(values.chunks(BLOCK)).zip(exact);
                for ((codes, values), magnitude) in blocks {
                    encode_block(codes, values, *magnitude);
                }
            },
        );
        let offset = lane_sum(&exact) / exact.len() as f32;
        let mut magnitudes = vec![0u8; exact.len()];
        let mut nested = Vec::with_capacity(exact.len().div_ceil(NESTED_BLOCK));
        for (codes, exact) in magnitudes.chunks_mut(NESTED_BLOCK).zip(exact.chunks(NESTED_BLOCK)) {
            let centred: Vec<f32> = exact.iter().map(|value| value - offset).collect();
            let size = largest(&centred);
            nested.push(size);
            // A block of zeros keeps code 0, and its size of zero makes zeros of it.
            if size > 0.0 {
                let inverse = 1.0 / size;
                for (code, value) in codes.iter_mut().zip(centred) {
                    *code = nearest_of_map((value * inverse).clamp(-1.0, 1.0));
                }
            }
        }
        Ok(Self {
            shape: (rows, columns),
            codes,
            magnitudes,
            nested,
            offset,
            #[cfg(feature = "cuda")]
            on_device: Default::default(),
        })
    }

    /// Takes up what a file holds.
    ///
    /// # Errors
    /// When the sizes do not belong to a matrix of this shape.
    pub fn from_parts(rows: usize, columns: usize, parts: Parts<'_>) -> Result<Self> {
        let count = rows * columns;
        let blocks = count.div_ceil(BLOCK);
        let expected = (count.div_ceil(2), blocks, blocks.div_ceil(NESTED_BLOCK));
        let found = (parts.codes.len(), parts.magnitudes.len(), parts.nested.len());
        if found != expected {
            bail!(
                "nf4: a matrix of {rows} by {columns} takes {expected:?} codes, magnitudes and nested, not {found:?}"
            );
        }
        Ok(Self {
            shape: (rows, columns),
            codes: parts.codes.to_vec(),
            magnitudes: parts.magnitudes.to_vec(),
            nested: parts.nested.to_vec(),
            offset: parts.offset,
            #[cfg(feature = "cuda")]
            on_device: Default::default(),
        })
    }

    /// Everything that a file has to hold.
    pub fn parts(&self) -> Parts<'_> {
        Parts { codes: &self.codes, magnitudes: &self.magnitudes, nested: &self.nested, offset: self.offset }
    }

    /// Rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        self.shape
    }

    /// Its copy on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(&self) -> &super::cuda::OnDevice {
        &self.on_device
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.magnitudes.len() + 4 * self.nested.len()
    }

    /// All values, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.shape.0 * self.shape.1];
        self.decode_rows(0..self.shape.0, &mut values);
        values
    }

    /// The values of some rows; `out` has their size.
    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let start = rows.start * self.shape.1;
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| self.decode(start + chunk * CHUNK, out));
    }

    /// The values from the `start`-th on, by the calling thread.
    pub(super) fn decode(&self, start: usize, out: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || {
                let (mut at, mut rest) = (start, out);
                while !rest.is_empty() {
                    let block = at / BLOCK;
                    let count = rest.len().min((block + 1) * BLOCK - at);
                    let (values, later) = rest.split_at_mut(count);
                    let magnitude = self.magnitude(block);
                    if at.is_multiple_of(2) && count.is_multiple_of(2) {
                        let codes = &self.codes[at / 2..(at + count) / 2];
                        for (pair, code) in values.chunks_exact_mut(2).zip(codes) {
                            pair[0] = LEVELS[usize::from(code >> 4)] * magnitude;
                            pair[1] = LEVELS[usize::from(code & 15)] * magnitude;
                        }
                    } else {
                        for (offset, value) in values.iter_mut().enumerate() {
                            let place = at + offset;
                            let byte = self.codes[place / 2];
                            let code = if place.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                            *value = LEVELS[usize::from(code)] * magnitude;
                        }
                    }
                    (at, rest) = (at + count, later);
                }
            },
        );
    }

    fn magnitude(&self, block: usize) -> f32 {
        DYNAMIC_MAP[usize::from(self.magnitudes[block])] * self.nested[block / NESTED_BLOCK] + self.offset
    }
}

fn largest(values: &[f32]) -> f32 {
    // A NaN must not hide behind a comparison.
    values.iter().fold(0f32, |size, value| if size.is_nan() || value.abs() <= size { size } else { value.abs() })
}

/// One over a magnitude, finite also for a block of zeros.
fn inverse(magnitude: f32) -> f32 {
    1.0 / magnitude.max(1e-38)
}

fn encode_block(codes: &mut [u8], values: &[f32], magnitude: f32) {
    // A block at the end that is not full is divided, not multiplied by the inverse, as in the reference.
    let (inverse, whole) = (inverse(magnitude), values.len() == BLOCK);
    let code = |value: f32| {
        let scaled = if whole { value * inverse } else { value / magnitude.max(1e-38) };
        nearest(&LEVELS, scaled.clamp(-1.0, 1.0))
    };
    for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
        // Half a byte that is left over holds zero.
        *byte = code(pair[0]) << 4 | pair.get(1).map_or(7, |second| code(*second));
    }
}

/// The place in [`DYNAMIC_MAP`] by a table of 65,536 steps, which near a midpoint may give the neighbour.
fn nearest_of_map(value: f32) -> u8 {
    static STEPS: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let step = |i: u32| nearest(&*DYNAMIC_MAP, -1.0 + 2.0 * i as f32 / 65_535.0);
        (0..65_536).map(step).collect()
    });
    STEPS[((value + 1.0) * 0.5).mul_add(65_535.0, 0.5) as usize]
}

/// A sum in the order of torch's: eight lanes, each in four accumulators, each in four levels of partial
/// sums. Another order would give an offset with other last bits, and with it other codes.
fn lane_sum(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const LEVELS: usize = 4;
    let lanes = if values.len() < LANES { 1 } else { LANES };
    let rows = values.len() / lanes;
    let add = |sums: &mut [f32; LANES], row: usize| {
        for (sum, value) in sums.iter_mut().zip(&values[row * lanes..(row + 1) * lanes]) {
            *sum += value;
        }
    };
    let groups = rows / 4;
    let power = (groups.max(1).next_power_of_two().ilog2() / 4).max(4);
    let mut sums = [[[0f32; LANES]; 4]; LEVELS];
    let mut group = 0;
    while group < groups {
        for (accumulator, sums) in sums[0].iter_mut().enumerate() {
            add(sums, 4 * group + accumulator);
        }
        group += 1;
        if group.is_multiple_of(1 << power) {
            for level in 1..LEVELS {
                let (below, above) = sums.split_at_mut(level);
                for (above, below) in above[0].iter_mut().flatten().zip(below[level - 1].iter_mut().flatten()) {
                    *above += std::mem::take(below);
                }
                if !(group >> (level as u32 * power)).is_multiple_of(1 << power) {
                    break;
                }
            }
        }
    }
    let [mut total, higher @ ..] = sums;
    for level in higher {
        for (sum, value) in total.iter_mut().flatten().zip(level.iter().flatten()) {
            *sum += value;
        }
    }
    for row in 4 * groups..rows {
        add(&mut total[0], row);
    }
    let [mut first, others @ ..] = total;
    for other in others {
        for (sum, value) in first.iter_mut().zip(other) {
            *sum += value;
        }
    }
    let tail = values[rows * lanes..].iter().fold(0f32, |sum, value| sum + value);
    first[..lanes].iter().fold(tail, |sum, value| sum + value)
}

/// How many midpoints of neighbours lie below `value`: the place of the nearest level.
fn nearest(levels: &[f32], value: f32) -> u8 {
    let (mut low, mut high) = (0, levels.len() - 1);
    while low < high {
        let middle = (low + high) / 2;
        if value > (levels[middle] + levels[middle + 1]) / 2.0 { low = middle + 1 } else { high = middle }
    }
    low as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn a_value_is_kept_to_half_the_distance_of_its_neighbouring_levels() {
        let values = Rng::new(1, "weights", 0).normals(128 * 64, 0.3);
        let quantized = Nf4::quantize(&values, 128, 64).unwrap();
        for (block, (values, kept)) in values.chunks(BLOCK).zip(quantized.dequantize().chunks(BLOCK)).enumerate() {
            let magnitude = largest(values);
            // The magnitude itself is kept to about a hundredth.
            assert!((quantized.magnitude(block) - magnitude).abs() < 0.02 * magnitude);
            for (value, kept) in values.iter().zip(kept) {
                assert!((value - kept).abs() < 0.17 * magnitude, "{value} became {kept}");
            }
        }
        assert_eq!(quantized.bytes() * 8, 128 * 64 * 4 + 128 * 8 + 32);
    }

    #[test]
    fn rows_decode_alone_as_they_do_together_whatever_their_length() {
        for columns in [7, 63, 64, 100] {
            let values = Rng::new(2, "weights", columns as u64).normals(9 * columns, 1.0);
            let quantized = Nf4::quantize(&values, 9, columns).unwrap();
            let all = quantized.dequantize();
            for row in 0..9 {
                let mut alone = vec![0f32; columns];
                quantized.decode_rows(row..row + 1, &mut alone);
                assert_eq!(alone, all[row * columns..(row + 1) * columns]);
            }
        }
    }

    #[test]
    fn a_value_on_a_midpoint_goes_down_and_zero_stays_zero() {
        let middle = (LEVELS[3] + LEVELS[4]) / 2.0;
        assert_eq!((nearest(&LEVELS, middle), nearest(&LEVELS, middle.next_up())), (3, 4));
        let zeros = Nf4::quantize(&[0.0; 70], 7, 10).unwrap();
        assert!(zeros.dequantize().iter().all(|value| *value == 0.0));
    }

    #[test]
    fn what_is_not_finite_or_misshapen_is_refused() {
        let mut values = vec![1f32; 64];
        values[9] = f32::NAN;
        assert!(Nf4::quantize(&values, 8, 8).unwrap_err().to_string().contains("not finite"));
        assert!(Nf4::quantize(&values, 8, 9).is_err());
        let good = Nf4::quantize(&[1.0; 64], 8, 8).unwrap();
        assert!(Nf4::from_parts(8, 9, good.parts()).is_err());
        assert_eq!(Nf4::from_parts(8, 8, good.parts()).unwrap(), good);
    }
}
