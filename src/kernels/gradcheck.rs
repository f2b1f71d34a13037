//! For the tests of this folder: gradients by central differences, and operands that are the same
//! on every run.

use candle_core::{Device, Result, Tensor, Var};

/// Values in about [-1, 1], a function of the seed alone.
pub(super) fn operand(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All values of a tensor, flat.
pub(super) fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Holds two tensors to `tolerance`, relative to the larger of one and the expected value.
#[track_caller]
pub(super) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), want.dims());
    for (index, (got, want)) in flat(got).into_iter().zip(flat(want)).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "at {index}: {got}, expected {want}");
    }
}

/// Checks the gradient of every operand of `op` against central differences of a weighted sum of
/// its output (unequal weights, so that a misplaced gradient cannot cancel out).
#[track_caller]
pub(super) fn check(operands: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = operands.iter().map(|operand| Var::from_tensor(operand).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let output = op(&tensors).unwrap();
    let weights = operand(output.dims(), 99);
    let grads = (&output * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let value = |index: usize, element: usize, delta: f32| -> f64 {
        let mut moved = operands.to_vec();
        let mut values = flat(&operands[index]);
        values[element] += delta;
        moved[index] = Tensor::from_vec(values, operands[index].shape(), &Device::Cpu).unwrap();
        let output = flat(&op(&moved).unwrap());
        output.iter().zip(flat(&weights)).map(|(y, w)| f64::from(*y) * f64::from(w)).sum()
    };
    // The step balances f32's rounding (about 1e-7 / h) against the third derivative (h²).
    const STEP: f32 = 1.0 / 128.0;
    for (index, tensor) in tensors.iter().enumerate() {
        let grad = grads.get(tensor).unwrap_or_else(|| panic!("operand {index} got no gradient"));
        assert_eq!(grad.dims(), tensor.dims());
        for (element, grad) in flat(grad).into_iter().enumerate() {
            let slope = (value(index, element, STEP) - value(index, element, -STEP)) / f64::from(2.0 * STEP);
            let error = (f64::from(grad) - slope).abs();
            assert!(
                error <= 2e-3 * slope.abs().max(1.0),
                "operand {index} at {element}: {grad}, differences say {slope}"
            );
        }
    }
}
