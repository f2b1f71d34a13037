//! Few rows: right, and each as if it were alone.

use super::*;
use crate::kernels::gradcheck::{flat, operand};

/// A product of some rows with one weight, by some tiles.
type Product = Box<dyn Fn(Tiles, &[f32], &mut [f32], Write) + Send + Sync>;

/// The three storages of a weight `[outputs, inputs]`, each with the values that it holds.
fn weights(outputs: usize, inputs: usize) -> Vec<(&'static str, Vec<f32>, Product)> {
    fn all(out: &mut [f32], columns: usize) -> Output<'_> {
        Output { values: out, columns, row_stride: columns }
    }
    let values = flat(&operand(&[outputs, inputs], 2));
    let packed = Panels::pack(&values, outputs, inputs);
    let mut rounded = vec![0f32; values.len()];
    packed.decode(0, inputs, &mut rounded);
    let quantized = Nf4::quantize(&values, outputs, inputs).unwrap();
    let decoded = quantized.dequantize();
    let own = values.clone();
    let dense: Product = Box::new(move |tiles, x, out, into| dense_by(tiles, x, inputs, &own, all(out, outputs), into));
    let panels: Product = Box::new(move |tiles, x, out, into| panels_by(tiles, x, &packed, all(out, outputs), into));
    let nf4: Product = Box::new(move |tiles, x, out, into| nf4_by(tiles, x, &quantized, all(out, outputs), into));
    vec![("f32", values, dense), ("bf16", rounded, panels), ("nf4", decoded, nf4)]
}

/// Odd and even inner sizes, below and above a block, a lane and a task.
const SIZES: [(usize, usize); 6] = [(1, 1), (33, 7), (70, 64), (300, 577), (40, 1500), (5, 2049)];

/// How far `sum` is from that of the products of two rows, for their size.
fn error(x: &[f32], weight: &[f32], sum: f64) -> f64 {
    let terms = || x.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w));
    (sum - terms().sum::<f64>()).abs() / (terms().map(f64::abs).sum::<f64>() + 1.0)
}

#[test]
fn a_product_is_the_plain_one_to_rounding_on_every_path() {
    for (outputs, inputs) in SIZES {
        for (name, values, product) in weights(outputs, inputs) {
            for rows in [1, 2, 5, 13] {
                let x = flat(&operand(&[rows, inputs], 1));
                for (path, tiles) in Tiles::all() {
                    let mut out = vec![7f32; rows * outputs];
                    product(tiles, &x, &mut out, Write::Replace);
                    product(tiles, &x, &mut out, Write::Add);
                    for (row, out) in out.chunks(outputs).enumerate() {
                        let x = &x[row * inputs..(row + 1) * inputs];
                        for (out, weight) in out.iter().zip(values.chunks(inputs)) {
                            let error = error(x, weight, f64::from(*out) / 2.0);
                            assert!(error <= 5e-7, "{name}, {path}, {outputs} × {inputs}: {error:e}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_1_to_64_rows_on_every_path() {
    for (outputs, inputs) in SIZES {
        let x = flat(&operand(&[MOST_ROWS, inputs], 1));
        for (name, _, product) in weights(outputs, inputs) {
            let mut alone = vec![0f32; MOST_ROWS * outputs];
            for (x, out) in x.chunks(inputs).zip(alone.chunks_mut(outputs)) {
                product(Tiles::portable(), x, out, Write::Replace);
            }
            for (path, tiles) in Tiles::all() {
                for rows in 1..=MOST_ROWS {
                    // Another place among the rows for every number of them.
                    let first = (rows * 7) % (MOST_ROWS - rows + 1);
                    let mut out = vec![0f32; rows * outputs];
                    product(tiles, &x[first * inputs..(first + rows) * inputs], &mut out, Write::Replace);
                    let same = out.iter().zip(&alone[first * outputs..]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{name}, {path}, {outputs} × {inputs}, {rows} rows");
                }
            }
        }
    }
}

/// The products of tile registers that this CPU can try.
fn on_registers() -> impl Iterator<Item = amx::Product> {
    [Some(amx::portable::product as amx::Product), amx::native()].into_iter().flatten()
}

#[test]
fn on_tile_registers_a_row_is_the_plain_product_and_has_the_same_bits_among_any_others() {
    // Past a unit of rows and past the rows of a task.
    const ROWS: usize = 130;
    for (outputs, inputs) in SIZES {
        let packed = Panels::pack(&flat(&operand(&[outputs, inputs], 2)), outputs, inputs);
        let mut weight = vec![0f32; outputs * inputs];
        packed.decode(0, inputs, &mut weight);
        let x = flat(&operand(&[ROWS, inputs], 1));
        for product in on_registers() {
            let multiply = |x: &[f32], into: Write| {
                let mut out = vec![7f32; x.len() / inputs * outputs];
                let whole = Output { values: &mut out, columns: outputs, row_stride: outputs };
                in_registers::<EXACT>(product, x, x.len() / inputs, &packed, whole, into);
                out
            };
            let alone: Vec<f32> = x.chunks(inputs).flat_map(|x| multiply(x, Write::Replace)).collect();
            for (x, alone) in x.chunks(inputs).zip(alone.chunks(outputs)) {
                for (alone, weight) in alone.iter().zip(weight.chunks(inputs)) {
                    let error = error(x, weight, f64::from(*alone));
                    assert!(error <= 5e-7, "{outputs} × {inputs}: {error:e}");
                }
            }
            for rows in [1, 2, 15, 16, 17, 31, 32, 33, 64, ROWS] {
                let first = (rows * 7) % (ROWS - rows + 1);
                let of = first * outputs..(first + rows) * outputs;
                let x = &x[first * inputs..(first + rows) * inputs];
                let among = multiply(x, Write::Replace);
                assert_eq!(among, alone[of.clone()], "{outputs} × {inputs}, {rows} rows");
                let added = multiply(x, Write::Add);
                let close = |(sum, alone): (&f32, &f32)| (sum - alone - 7.0).abs() <= 1e-6 * (alone.abs() + 7.0);
                assert!(added.iter().zip(&alone[of]).all(close), "{outputs} × {inputs}, {rows} rows added");
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let x = flat(&operand(&[9, 577], 1));
    for (name, _, product) in weights(300, 577) {
        let on = |threads| {
            let mut out = vec![0f32; 9 * 300];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.scope(|_| product(Tiles::native(), &x, &mut out, Write::Replace));
            out
        };
        assert_eq!(on(1), on(3), "{name}");
    }
}

#[test]
fn inner_products_are_those_of_a_product_with_the_rows() {
    for count in [1, 3, 5] {
        let (x, rows) = (flat(&operand(&[count, 37], 1)), flat(&operand(&[9, 37], 2)));
        let (mut out, mut expected) = (vec![0f32; 9 * count], vec![0f32; 9 * count]);
        let each: Vec<&[f32]> = x.chunks(37).collect();
        inner_products(&each, 9, |row| &rows[row * 37..(row + 1) * 37], 0.5, &mut out);
        dense(&x, 37, &rows, Output { values: &mut expected, columns: 9, row_stride: 9 }, Write::Replace);
        expected.iter_mut().for_each(|value| *value *= 0.5);
        assert_eq!(out, expected);
    }
}
