//! Promises of the fused head and loss.

use candle_core::{DType, Device};

use super::*;
use crate::kernels::gradcheck::{assert_close, flat, operand};

const LABELS: [Option<u32>; 6] = [Some(3), None, Some(0), Some(10), None, Some(3)];
const SCALES: [f32; 6] = [1.0, 9.0, 0.5, 2.0, 9.0, -1.0];

fn operands() -> (Tensor, Tensor) {
    ((operand(&[6, 5], 1) * 2.0).unwrap(), (operand(&[11, 5], 2) * 2.0).unwrap())
}

fn loss(hidden: &Tensor, weight: &Tensor, scales: Option<&[f32]>, cap: Option<f64>) -> f64 {
    linear_cross_entropy(hidden, weight, &LABELS, scales, cap, Gradients::None).unwrap().loss_sum
}

#[test]
fn losses_equal_the_log_of_the_softmax_and_unlabelled_rows_count_nothing() {
    let (hidden, weight) = operands();
    for cap in [None, Some(1.5)] {
        let got = linear_cross_entropy(&hidden, &weight, &LABELS, None, cap, Gradients::None).unwrap();
        let mut logits = hidden.matmul(&weight.t().unwrap()).unwrap().to_dtype(DType::F64).unwrap();
        if let Some(cap) = cap {
            logits = ((logits / cap).unwrap().tanh().unwrap() * cap).unwrap();
        }
        let logits = logits.to_vec2::<f64>().unwrap();
        for (row, label) in LABELS.iter().enumerate() {
            let sum: f64 = logits[row].iter().map(|logit| logit.exp()).sum();
            let want = label.map_or(0.0, |label| sum.ln() - logits[row][label as usize]);
            assert!((f64::from(got.token_losses[row]) - want).abs() < 1e-5, "row {row}");
        }
        let total: f64 = got.token_losses.iter().map(|loss| f64::from(*loss)).sum();
        assert!((got.loss_sum - total).abs() < 1e-9);
        assert!(flat(&got.grad_hidden).iter().all(|g| *g == 0.0) && got.grad_weight.is_none());
    }
}

#[test]
fn gradients_equal_finite_differences_with_and_without_scales_and_a_cap() {
    let (hidden, weight) = operands();
    for (scales, cap) in [(None, None), (Some(&SCALES[..]), None), (None, Some(1.5)), (Some(&SCALES[..]), Some(4.0))] {
        let got = linear_cross_entropy(&hidden, &weight, &LABELS, scales, cap, Gradients::HiddenAndWeight).unwrap();
        let differences = |operand: &Tensor, loss: &dyn Fn(&Tensor) -> f64| {
            let step = 1.0 / 128.0;
            let mut slopes = Vec::new();
            for element in 0..operand.elem_count() {
                let moved = |delta: f32| {
                    let mut values = flat(operand);
                    values[element] += delta;
                    loss(&Tensor::from_vec(values, operand.shape(), &Device::Cpu).unwrap())
                };
                slopes.push(((moved(step) - moved(-step)) / f64::from(2.0 * step)) as f32);
            }
            Tensor::from_vec(slopes, operand.shape(), &Device::Cpu).unwrap()
        };
        assert_close(&got.grad_hidden, &differences(&hidden, &|h| loss(h, &weight, scales, cap)), 2e-3);
        let want = differences(&weight, &|w| loss(&hidden, w, scales, cap));
        assert_close(got.grad_weight.as_ref().unwrap(), &want, 2e-3);
    }
}

#[test]
fn a_head_in_bf16_gives_the_loss_and_the_gradient_of_its_values() {
    let (hidden, weight) = operands();
    // Values that bf16 holds as they are.
    let hidden = Weight::packed(&hidden).unwrap().values().unwrap();
    let packed = Weight::packed(&weight).unwrap();
    let values = packed.values().unwrap();
    for cap in [None, Some(1.5)] {
        let run = |head: &Weight| {
            linear_cross_entropy(&hidden, head.clone(), &LABELS, Some(&SCALES), cap, Gradients::Hidden).unwrap()
        };
        let (got, want) = (run(&packed), run(&Weight::from(&values)));
        assert!((got.loss_sum - want.loss_sum).abs() < 1e-5);
        // The slopes of the logits, at most 2 in size and so many as labels, are rounded by 2^-9 of themselves.
        assert_close(&got.grad_hidden, &want.grad_hidden, 1e-2);
    }
    let all = linear_cross_entropy(&hidden, packed, &LABELS, None, None, Gradients::HiddenAndWeight);
    assert!(all.unwrap_err().to_string().contains("gets no gradient"));
}

#[test]
fn a_head_that_trains_alone_gets_its_gradient_and_none_is_made_for_what_goes_in() {
    let (hidden, weight) = operands();
    let run = |gradients| linear_cross_entropy(&hidden, &weight, &LABELS, Some(&SCALES), None, gradients).unwrap();
    let (alone, both) = (run(Gradients::Weight), run(Gradients::HiddenAndWeight));
    assert_eq!(flat(&alone.grad_weight.unwrap()), flat(&both.grad_weight.unwrap()));
    assert_eq!((alone.loss_sum, alone.token_losses), (both.loss_sum, both.token_losses));
    assert!(flat(&alone.grad_hidden).iter().all(|value| *value == 0.0));
}

#[test]
fn rows_past_one_chunk_are_all_counted() {
    let rows = 3 * MOST[0] + 5;
    let (hidden, weight) = (operand(&[rows, 4], 1), operand(&[7, 4], 2));
    let labels: Vec<Option<u32>> = (0..rows).map(|row| (row % 3 != 1).then_some((row % 7) as u32)).collect();
    let all = linear_cross_entropy(&hidden, &weight, &labels, None, None, Gradients::HiddenAndWeight).unwrap();
    let (mut loss, mut grad_hidden, mut grad_weight) = (0.0, Vec::new(), weight.zeros_like().unwrap());
    for start in (0..rows).step_by(100) {
        let length = 100.min(rows - start);
        let part = hidden.narrow(0, start, length).unwrap();
        let part = linear_cross_entropy(
            &part,
            &weight,
            &labels[start..start + length],
            None,
            None,
            Gradients::HiddenAndWeight,
        )
        .unwrap();
        loss += part.loss_sum;
        grad_hidden.extend(flat(&part.grad_hidden));
        grad_weight = (grad_weight + part.grad_weight.unwrap()).unwrap();
    }
    assert!((all.loss_sum - loss).abs() < 1e-3);
    assert_close(&all.grad_hidden, &Tensor::from_vec(grad_hidden, (rows, 4), &Device::Cpu).unwrap(), 1e-5);
    assert_close(all.grad_weight.as_ref().unwrap(), &grad_weight, 1e-4);
}

#[test]
fn nothing_labelled_gives_a_loss_of_zero() {
    let (hidden, weight) = operands();
    let got = linear_cross_entropy(&hidden, &weight, &[None; 6], None, None, Gradients::HiddenAndWeight).unwrap();
    assert_eq!(got.loss_sum, 0.0);
    assert!(flat(&got.grad_weight.unwrap()).iter().all(|g| *g == 0.0));
}

#[test]
fn far_logits_stay_finite_and_what_is_not_a_number_shows() {
    let (hidden, weight) = operands();
    let far = linear_cross_entropy(&(&hidden * 1e4).unwrap(), &weight, &LABELS, None, None, Gradients::Hidden).unwrap();
    assert!(far.loss_sum.is_finite() && flat(&far.grad_hidden).iter().all(|g| g.is_finite()));
    let broken = (&hidden * f64::NAN).unwrap();
    assert!(loss(&broken, &weight, None, None).is_nan());
}

#[test]
fn a_label_past_the_vocabulary_and_a_missing_label_are_refused() {
    let (hidden, weight) = operands();
    let run = |labels: &[Option<u32>]| linear_cross_entropy(&hidden, &weight, labels, None, None, Gradients::None);
    assert!(run(&[Some(11); 6]).unwrap_err().to_string().contains("label 11"));
    assert!(run(&[Some(1); 5]).is_err());
    let capped = linear_cross_entropy(&hidden, &weight, &LABELS, None, Some(-1.0), Gradients::None).unwrap_err();
    assert!(capped.to_string().contains("a soft cap must be positive"));
}
