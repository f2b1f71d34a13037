//! Promises of products on tile registers, held on every CPU through the portable product, and the registers' own to
//! it where there are any.

use super::*;
use crate::kernels::bf16::to_bf16;
use crate::kernels::gradcheck::{flat, operand};

/// The sums of each row over one panel, by a product.
fn multiply<const TERMS: usize>(product: Product, x: &[f32], weight: &Panels) -> Vec<[f32; COLUMNS]> {
    let packed = Packed::<TERMS>::new(x, weight.inner());
    let mut sums = Sums([[7.0; COLUMNS]; UNIT]);
    let rows = x.len() / weight.inner();
    let unit = |first: usize| {
        let unit = first..rows.min(first + UNIT);
        packed.multiply(product, unit, 0, weight.panel(0), &mut sums).to_vec()
    };
    (0..rows).step_by(UNIT).flat_map(unit).collect()
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
        let (x, weight) = (flat(&operand(&[rows, inner], 1)), flat(&operand(&[30, inner], 2)));
        let weight: Vec<f32> = weight.into_iter().map(to_bf16).collect();
        let panels = Panels::pack(&weight, 30, inner);
        for (name, product) in products() {
            for (x, sums) in x.chunks(inner).zip(multiply::<EXACT>(product, &x, &panels)) {
                for (weight, sum) in weight.chunks(inner).zip(sums) {
                    let terms = || x.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let error = (f64::from(sum) - terms().sum::<f64>()).abs();
                    let size = terms().map(f64::abs).sum::<f64>();
                    assert!(error <= 3e-7 * (size + 1e-3), "{name}, {rows} × {inner}: {error:e} of {size}");
                }
            }
        }
    }
}

#[test]
fn one_term_is_the_row_rounded() {
    let x = flat(&operand(&[20, 100], 1));
    let rounded: Vec<f32> = x.iter().copied().map(to_bf16).collect();
    let panels = Panels::pack(&flat(&operand(&[32, 100], 2)), 32, 100);
    for (name, product) in products() {
        assert_eq!(multiply::<ROUNDED>(product, &x, &panels), multiply::<EXACT>(product, &rounded, &panels), "{name}");
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
        let (x, panels) = (wide(1, rows * inner), Panels::pack(&wide(2, inner * 32), 32, inner));
        let bits = |sums: Vec<[f32; COLUMNS]>| sums.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let three = [native, portable::product].map(|product| bits(multiply::<EXACT>(product, &x, &panels)));
        assert_eq!(three[0], three[1], "{rows} × {inner}");
        let one = [native, portable::product].map(|product| bits(multiply::<ROUNDED>(product, &x, &panels)));
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
        let sums = multiply::<EXACT>(product, &x, &Panels::pack(&[1.0; 32], 1, 32));
        assert!(sums[0][0].is_nan() && !sums[1][0].is_finite(), "{name}");
    }
}
