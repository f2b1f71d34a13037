//! Promises of packed bf16 products. What the instruction computes is held on every CPU through the portable
//! micro-kernel, and the instruction to it where there is one.

use rayon::ThreadPoolBuilder;

use super::panels::{PairRow, halves, pack_rows, rounded};
use super::tile::{ROWS, Sums, lanes};
use super::*;
use crate::kernels::amx;
use crate::kernels::gradcheck::{flat, operand};

fn values(count: usize, seed: u32) -> Vec<f32> {
    flat(&operand(&[count], seed))
}

/// The value as packing keeps it.
fn kept(value: f32) -> f32 {
    f32::from_bits(rounded(value))
}

/// What a CPU with vectors and one with tile registers computes.
const KERNELS: [Kernel; 2] = [Kernel::Lanes(portable::tile), Kernel::Registers(amx::portable::product)];

/// A shape (rows, columns, inner): below, at and past the edges of tiles, panels, pairs, tasks and blocks.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 5, 7),
    (12, 32, 64),
    (13, 33, 65),
    (25, 70, 1601),
    (97, 300, 33),
    (200, 289, 769),
    (11, 40, 2),
    (4, 3, 0),
];

#[test]
fn a_value_becomes_the_nearest_of_bf16_and_a_subnormal_one_zero() {
    let bits = |value: u32| rounded(f32::from_bits(value)) >> 16;
    assert_eq!([bits(0x3f80_8000), bits(0x3f81_8000), bits(0x3f80_8001)], [0x3f80, 0x3f82, 0x3f81]);
    assert_eq!([bits(0x0000_0001), bits(0x807f_ffff), bits(0x0080_0000)], [0, 0x8000, 0x0080]);
    assert_eq!((kept(f32::NEG_INFINITY), kept(f32::MAX)), (f32::NEG_INFINITY, f32::INFINITY));
    assert!(kept(f32::NAN).is_nan() && kept(f32::from_bits(0xffff_ffff)).is_nan());
    for value in values(1000, 1) {
        assert!((kept(value) - value).abs() <= value.abs() / 256.0);
    }
}

#[test]
fn what_is_packed_decodes_to_the_rounded_values_and_transposes_without_loss() {
    for (_, outputs, inputs) in SHAPES {
        let weight = values(outputs * inputs, 3);
        let packed = Packed::new(&weight, outputs, inputs).unwrap();
        let rounded: Vec<f32> = weight.iter().copied().map(kept).collect();
        for start in (0..outputs).step_by(ROWS_TOGETHER) {
            let end = outputs.min(start + 2 * ROWS_TOGETHER);
            let mut rows = vec![f32::NAN; (end - start) * inputs];
            packed.decode_rows(start..end, &mut rows);
            assert_eq!(rows, rounded[start * inputs..end * inputs]);
        }
        let turned: Vec<f32> = (0..outputs * inputs).map(|at| weight[at % outputs * inputs + at / outputs]).collect();
        let same = |a: &Panels, b: &Panels| {
            assert_eq!((a.columns(), a.inner(), a.bytes()), (b.columns(), b.inner(), b.bytes()));
            for panel in 0..a.columns().div_ceil(COLUMNS) {
                let pairs = a.panel(panel).iter().zip(b.panel(panel));
                assert!(pairs.into_iter().all(|(a, b)| a.0 == b.0), "{outputs} by {inputs}, panel {panel}");
            }
        };
        if inputs > 0 {
            same(packed.transposed(), &Panels::pack(&turned, inputs, outputs));
            same(&packed.transposed().transposed(), &packed.forward);
        }
    }
    assert!(Packed::new(&[1.0; 5], 2, 3).unwrap_err().to_string().contains("5 values"));
}

/// Σ of the exact products of rounded values, and of their magnitudes.
fn exact(pairs: impl Iterator<Item = (f32, f32)>) -> (f64, f64) {
    let products = pairs.map(|(a, b)| f64::from(kept(a)) * f64::from(kept(b)));
    products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
}

#[test]
fn products_both_ways_equal_those_of_the_rounded_values_in_f64() {
    for (rows, columns, inner) in SHAPES {
        let (x, weight, gap) = (values(rows * inner, 1), values(columns * inner, 2), 3);
        let grad = values(rows * columns, 4);
        let packed = Packed::new(&weight, columns, inner).unwrap();
        let run = |kernel: Kernel, left: &[f32], panels: &Panels, into: Write| {
            let width = panels.columns();
            let mut out = vec![0.5f32; rows * (width + gap)];
            let output = Output { values: &mut out, columns: width, row_stride: width + gap };
            product(kernel, left, rows, panels, output, into);
            out
        };
        // A sum of n fused multiply-adds is off by at most n units of 2^-24 of the sum of magnitudes.
        let check = |got: f32, start: f64, terms: usize, (sum, size): (f64, f64)| {
            let bound = (terms + 8) as f64 * 2f64.powi(-24) * (size + start);
            let error = (f64::from(got) - start - sum).abs();
            assert!(error <= bound, "({rows}, {columns}, {inner}): off by {error:e}, bound {bound:e}");
        };
        let ways = KERNELS.into_iter().flat_map(|kernel| [(kernel, Write::Replace, 0.0), (kernel, Write::Add, 0.5)]);
        for (kernel, into, start) in ways {
            let y = run(kernel, &x, &packed.forward, into);
            for (row, y) in y.chunks_exact(columns + gap).enumerate() {
                for (column, got) in y[..columns].iter().enumerate() {
                    let weight = weight[column * inner..][..inner].iter();
                    let x = x[row * inner..][..inner].iter();
                    check(*got, start, inner, exact(x.copied().zip(weight.copied())));
                }
                assert_eq!(y[columns..], [0.5; 3], "what lies between the rows is not touched");
            }
            let dx = run(kernel, &grad, packed.transposed(), into);
            for (row, dx) in dx.chunks_exact(inner + gap).enumerate() {
                for (column, got) in dx[..inner].iter().enumerate() {
                    let weight = (0..columns).map(|at| weight[at * inner + column]);
                    check(*got, start, columns, exact(grad[row * columns..][..columns].iter().copied().zip(weight)));
                }
                assert_eq!(dx[inner..], [0.5; 3]);
            }
        }
    }
}

#[test]
fn neither_threads_nor_other_rows_change_a_bit() {
    let (rows, columns, inner) = (210, 600, 1700);
    let (x, weight) = (values(rows * inner, 1), values(columns * inner, 2));
    let packed = Packed::new(&weight, columns, inner).unwrap();
    let run = |kernel: Kernel, x: &[f32], threads: usize| {
        let rows = x.len() / inner;
        let mut out = vec![0f32; rows * columns];
        let output = Output { values: &mut out, columns, row_stride: columns };
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| product(kernel, x, rows, &packed.forward, output, Write::Replace));
        out
    };
    for kernel in KERNELS {
        let one = run(kernel, &x, 1);
        for threads in [2, 3, 8] {
            assert_eq!(one, run(kernel, &x, threads), "{threads} threads");
        }
        for row in [0, 11, 12, 100, 209] {
            assert_eq!(one[row * columns..][..columns], run(kernel, &x[row * inner..][..inner], 1), "row {row}");
        }
    }
}

#[test]
fn the_portable_kernel_flushes_and_rounds_as_the_instruction_is_specified() {
    // One row and one column; pairs are (low, high), the other side is ones.
    let sum = |pairs: &[[f32; 2]], other: f32| {
        let pair = |[low, high]: [f32; 2]| rounded(low) >> 16 | rounded(high);
        let (mut sums, mut row) = (Sums::default(), PairRow([0; COLUMNS]));
        row.0[5] = pair([other; 2]);
        let left: Vec<u32> = pairs.iter().copied().map(pair).collect();
        portable::tile(&left, 1, &vec![row; pairs.len()], &mut sums);
        sums.0[0][5]
    };
    // The higher half is added first, and rounded to even: 1 + 2^-24 is 1. In the other order it would be 1 + 2^-22.
    let half_unit = 2f32.powi(-24);
    assert_eq!(sum(&[[0.0, 1.0], [1.5 * half_unit, half_unit]], 1.0), 1.0 + 2.0 * half_unit);
    // A subnormal result is zero with its sign; the least normal one stays.
    assert_eq!(sum(&[[0.0, 2f32.powi(-70)]], -2f32.powi(-60)).to_bits(), (-0f32).to_bits());
    assert_eq!(sum(&[[0.0, 2f32.powi(-66)]], 2f32.powi(-60)), f32::MIN_POSITIVE);
    assert_eq!(halves(0x4000_3f80), [1.0, 2.0]);
}

#[test]
fn the_instruction_computes_what_the_portable_kernel_computes() {
    let Some(native) = lanes() else {
        eprintln!("skipped: this CPU has no AVX512-BF16 that is worth it");
        return;
    };
    let (mut differing, mut all) = (0, 0);
    for rows in 1..=ROWS {
        for inner in [1, 2, 33, 700] {
            let (x, weight) = (values(rows * inner, 5), values(COLUMNS * inner, 6));
            // Magnitudes over many decades, subnormal sums among them.
            let scaled = |values: Vec<f32>| -> Vec<f32> {
                values.iter().enumerate().map(|(at, value)| value * 2f32.powi(at as i32 % 140 - 120)).collect()
            };
            for (x, weight) in [(x.clone(), weight.clone()), (scaled(x), scaled(weight))] {
                let panels = Panels::pack(&weight, COLUMNS, inner);
                let mut left = vec![0u32; rows * panels.pairs()];
                pack_rows::<ROWS>(&x, inner, &mut left);
                let (mut expected, mut got) = (Sums::default(), Sums::default());
                portable::tile(&left, rows, panels.panel(0), &mut expected);
                native(&left, rows, panels.panel(0), &mut got);
                for row in 0..rows {
                    for column in 0..COLUMNS {
                        let (expected, got) = (expected.0[row][column], got.0[row][column]);
                        let pairs = x[row * inner..][..inner].iter().zip(&weight[column * inner..][..inner]);
                        let (_, size) = exact(pairs.map(|(a, b)| (*a, *b)));
                        all += 1;
                        differing += usize::from(expected.to_bits() != got.to_bits());
                        let unit = size * f64::from(f32::EPSILON) + f64::from(f32::MIN_POSITIVE);
                        let error = f64::from(expected - got).abs();
                        assert!(error <= unit, "{rows} rows, {inner} values: {got:e}, expected {expected:e}");
                    }
                }
            }
        }
    }
    eprintln!("{differing} of {all} sums differ in their last bits");
}

#[test]
fn a_micro_kernel_that_is_wrong_in_one_place_is_found_before_it_is_used() {
    fn swapped(left: &[u32], rows: usize, panel: &[PairRow], sums: &mut Sums) {
        portable::tile(left, rows, panel, sums);
        sums.0[rows - 1].swap(3, 20);
    }
    fn halves_crossed(left: &[u32], rows: usize, panel: &[PairRow], sums: &mut Sums) {
        let crossed: Vec<u32> = left.iter().map(|pair| pair.rotate_left(16)).collect();
        portable::tile(&crossed, rows, panel, sums);
    }
    assert!(tile::is_exact(portable::tile) && lanes().is_none_or(tile::is_exact));
    assert!(!tile::is_exact(swapped));
    assert!(!tile::is_exact(halves_crossed));
}
