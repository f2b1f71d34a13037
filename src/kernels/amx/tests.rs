//! Promises of products on tile registers, held on every CPU through the portable product, and the registers' own to
//! it where there are any.

use super::*;
use crate::kernels::gradcheck::{flat, operand};

/// A matrix `[inner, columns]` of up to a panel's columns as a panel.
fn panel(values: &[f32], inner: usize, columns: usize) -> Vec<PairRow> {
    let value = |at: usize, column: usize| {
        let inside = at < inner && column < columns;
        if inside { values[at * columns + column] } else { 0.0 }
    };
    let pair = |at: usize, column: usize| rounded(value(2 * at, column)) >> 16 | rounded(value(2 * at + 1, column));
    (0..inner.div_ceil(2)).map(|at| PairRow(std::array::from_fn(|column| pair(at, column)))).collect()
}

/// The sums of each row, by a product.
fn multiply<const TERMS: usize>(product: Product, x: &[f32], inner: usize, panel: &[PairRow]) -> Vec<[f32; COLUMNS]> {
    let packed = Packed::<TERMS>::new(x, inner);
    let mut sums = Sums([[7.0; COLUMNS]; UNIT]);
    let unit = |unit: Range<usize>| packed.multiply(product, &unit, 0, panel, &mut sums).to_vec();
    packed.units().flat_map(unit).collect()
}

fn products() -> Vec<(&'static str, Product)> {
    [("portable", Some(portable::product as Product)), ("AMX", native())]
        .into_iter()
        .filter_map(|(name, product)| product.map(|product| (name, product)))
        .collect()
}

/// Rows and inner sizes below, at and past the edges of registers, pairs and units.
const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 31), (16, 32), (17, 33), (32, 64), (33, 97), (70, 576), (5, 1001)];

#[test]
fn three_terms_are_every_bit_of_a_row() {
    for (rows, inner) in SHAPES {
        let (x, w) = (flat(&operand(&[rows, inner], 1)), flat(&operand(&[inner, 30], 2)));
        let w: Vec<f32> = w.iter().map(|value| f32::from_bits(rounded(*value))).collect();
        let panel = panel(&w, inner, 30);
        for (name, product) in products() {
            let sums = multiply::<EXACT>(product, &x, inner, &panel);
            for (row, sums) in x.chunks(inner).zip(sums) {
                for (column, sum) in sums[..30].iter().enumerate() {
                    let terms = || row.iter().zip(w[column..].iter().step_by(30));
                    let exact: f64 = terms().map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let size: f64 = terms().map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs()).sum();
                    let error = (f64::from(*sum) - exact).abs();
                    assert!(error <= 3e-7 * (size + 1e-3), "{name}, {rows} × {inner}: {error:e} of {size}");
                }
            }
        }
    }
}

#[test]
fn one_term_is_the_row_rounded() {
    let (x, w) = (flat(&operand(&[20, 100], 1)), flat(&operand(&[100, 32], 2)));
    let rounded: Vec<f32> = x.iter().map(|value| f32::from_bits(rounded(*value))).collect();
    let panel = panel(&w, 100, 32);
    for (name, product) in products() {
        let (one, all) =
            (multiply::<ROUNDED>(product, &x, 100, &panel), multiply::<EXACT>(product, &rounded, 100, &panel));
        assert_eq!(one, all, "{name}");
    }
}

#[test]
fn the_registers_give_the_bits_of_the_portable_product() {
    let Some(native) = native() else {
        eprintln!("this CPU has no AMX, or the system does not lend its registers: nothing to compare");
        return;
    };
    for (rows, inner) in SHAPES {
        // From subnormal to large ones, so every rounding and every zero in their place shows.
        let wide = |seed: u32, count: usize| -> Vec<f32> {
            let values = flat(&operand(&[count], seed));
            values.iter().enumerate().map(|(at, value)| value * 10f32.powi((at % 13) as i32 * 5 - 38)).collect()
        };
        let (x, panel) = (wide(1, rows * inner), panel(&wide(2, inner * 32), inner, 32));
        let bits = |sums: Vec<[f32; COLUMNS]>| sums.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let three = [native, portable::product].map(|product| bits(multiply::<EXACT>(product, &x, inner, &panel)));
        assert_eq!(three[0], three[1], "{rows} × {inner}");
        let one = [native, portable::product].map(|product| bits(multiply::<ROUNDED>(product, &x, inner, &panel)));
        assert_eq!(one[0], one[1], "{rows} × {inner}");
    }
}

#[test]
fn a_product_with_something_else_is_found_out() {
    fn swapped(left: &[Left], terms: usize, panel: &[PairRow], sums: &mut Sums, add: bool) {
        portable::product(left, terms, panel, sums, add);
        sums.0[0].swap(3, 4);
    }
    assert!(is_exact(portable::product));
    assert!(!is_exact(swapped));
}

#[test]
fn what_is_no_number_stays_none() {
    for (name, product) in products() {
        let mut x = vec![1f32; 64];
        (x[3], x[40]) = (f32::NAN, f32::INFINITY);
        let sums = multiply::<EXACT>(product, &x, 32, &panel(&[1.0; 32], 32, 1));
        assert!(sums[0][0].is_nan() && !sums[1][0].is_finite(), "{name}");
    }
}
