//! The operations that are products of matrices, and how products are asked for.

use super::*;
use crate::kernels::cuda::dora;
use crate::kernels::cuda::linear_cross_entropy::Head;
use crate::kernels::cuda::lora_linear::Update;
use crate::kernels::cuda::product::{Matrix, multiplied};
use crate::kernels::dropout::Dropout;
use crate::kernels::linear::{Sizes, linear};
use crate::kernels::linear_cross_entropy::{Gradients, Labelled, linear_cross_entropy};
use crate::kernels::lora_linear::lora_linear;
use crate::kernels::{Weight, row_norms, row_squares};

struct Transposes;

impl Trial for Transposes {
    fn run<M: Machine>(&self, machine: &M) {
        let (m, k, n) = (5, 7, 3);
        let (a, b) = (exact(&[m, k], 1), exact(&[k, n], 2));
        let want = (a.matmul(&b).unwrap() * 1.5).unwrap();
        for (turn_a, turn_b) in [(false, false), (true, false), (false, true), (true, true)] {
            let lies = |tensor: &Tensor, turned: bool| {
                let tensor = if turned { tensor.t().unwrap().contiguous().unwrap() } else { tensor.clone() };
                bring(machine, &tensor, Element::F32)
            };
            let (lies_a, lies_b) = (lies(&a, turn_a), lies(&b, turn_b));
            let seen = |view, rows, columns, turned| match turned {
                false => Matrix::new(view, rows, columns).unwrap(),
                true => Matrix::new(view, columns, rows).unwrap().t(),
            };
            let (a, b) = (seen(machine.view(&lies_a), m, k, turn_a), seen(machine.view(&lies_b), k, n, turn_b));
            let got = multiplied(machine, Element::F32, 1.5, a, b).unwrap();
            assert_equal_to("product", machine, &got, &want, 1e-5);
        }
    }
}

#[test]
fn products_of_transposed_matrices_equal_the_cpu() {
    everywhere(&Transposes);
}

struct Maps;

impl Trial for Maps {
    fn run<M: Machine>(&self, machine: &M) {
        let (rows, inputs, outputs) = (131, 9, 5);
        let sizes = Sizes { rows, inputs, outputs };
        let (x, weight, bias) =
            (variable(&[rows, inputs], 1), variable(&[outputs, inputs], 2), variable(&[outputs], 3));
        let grads = exact(&[rows, outputs], 4);
        let out = linear(&x, &weight, Some(&bias)).unwrap();
        let want = [&x, &weight, &bias].map(|var| gradient(&out, &grads, var));
        for element in BOTH {
            let on = [x.as_tensor(), weight.as_tensor(), bias.as_tensor(), &grads];
            let on = on.map(|tensor| bring(machine, tensor, element));
            let [x, weight, bias, grad] = on.each_ref().map(|memory| machine.view(memory));
            let name = |what: &str| format!("linear {what} {element:?}");
            let got = sizes.cuda_forward(machine, x, weight, Some(bias)).unwrap();
            assert_equal_to(&name("value"), machine, &got, &out, tolerance(element));
            let got = sizes.cuda_grad_x(machine, weight, grad).unwrap();
            assert_equal_to(&name("gradient of x"), machine, &got, &want[0], tolerance(element));
            let got = sizes.cuda_grad_weight(machine, x, grad).unwrap();
            assert_equal_to(&name("gradient of the weight"), machine, &got, &want[1], tolerance(element));
            let got = sizes.cuda_grad_bias(machine, grad).unwrap();
            assert_equal_to(&name("gradient of the bias"), machine, &got, &want[2], tolerance(element));
        }
    }
}

#[test]
fn linear_maps_equal_the_cpu() {
    everywhere(&Maps);
}

struct Updates;

impl Trial for Updates {
    fn run<M: Machine>(&self, machine: &M) {
        let (rows, inputs, outputs, rank) = (33, 10, 6, 3);
        let [x, a, b] = [[rows, inputs], [rank, inputs], [outputs, rank]].map(|shape| variable(&shape, 1));
        let (weight, bias, grads) = (exact(&[outputs, inputs], 2), exact(&[outputs], 3), exact(&[rows, outputs], 4));
        for dropout in [None, Some(Dropout { probability: 0.3, key: 5 })] {
            let base = Weight::from(weight.clone());
            let out = lora_linear(&x, &base, Some(&bias), &a, &b, 1.5, dropout.as_ref()).unwrap();
            let want = [&x, &a, &b].map(|var| gradient(&out, &grads, var));
            for element in BOTH {
                let on = [x.as_tensor(), &weight, &bias, &grads].map(|tensor| bring(machine, tensor, element));
                let [x, weight, bias, grad] = on.each_ref().map(|memory| machine.view(memory));
                // The factors are f32 whatever the rest is.
                let factors = [&a, &b].map(|var| bring(machine, var, Element::F32));
                let [a, b] = factors.each_ref().map(|memory| machine.view(memory));
                let update = Update { sizes: Sizes { rows, inputs, outputs }, rank, scale: 1.5, dropout, x, a, b };
                let got = update.cuda_forward(machine, Some(weight), Some(bias)).unwrap();
                let tolerance = 2.0 * tolerance(element);
                assert_equal_to(&format!("lora_linear value {element:?}"), machine, &got, &out, tolerance);
                let got = update.cuda_backward(machine, Some(weight), grad, [true; 3]).unwrap().map(Option::unwrap);
                for (got, (want, what)) in got.iter().zip(want.iter().zip(["x", "A", "B"])) {
                    let name = format!("lora_linear gradient of {what} {element:?}");
                    assert_equal_to(&name, machine, got, want, tolerance);
                }
                assert!(update.cuda_forward(machine, None, None).is_ok());
            }
        }
    }
}

#[test]
fn low_rank_updates_equal_the_cpu() {
    everywhere(&Updates);
}

struct Heads;

impl Trial for Heads {
    fn run<M: Machine>(&self, machine: &M) {
        let (rows, width, vocabulary) = (29, 6, 1037);
        let (hidden, weight) = (exact(&[rows, width], 1), exact(&[vocabulary, width], 2));
        let weight = (weight * 4.0).unwrap();
        let labels: Vec<Option<u32>> = (0..rows as u32).map(|i| (i % 4 != 1).then_some(i * 37 % 1037)).collect();
        let scales: Vec<f32> = (0..rows).map(|i| 0.5 + i as f32 / 64.0).collect();
        for softcap in [None, Some(2.0)] {
            let gradients = Gradients::HiddenAndWeight;
            let want = linear_cross_entropy(&hidden, &weight, &labels, Some(&scales), softcap, gradients).unwrap();
            let labelled = labels.iter().zip(&scales).enumerate().filter_map(|(row, (label, scale))| {
                label.map(|label| Labelled { row, label: label as usize, scale: *scale })
            });
            let labelled: Vec<Labelled> = labelled.collect();
            let losses: Vec<f32> = labelled.iter().map(|at| want.token_losses[at.row]).collect();
            for element in BOTH {
                let on = [&hidden, &weight].map(|tensor| bring(machine, tensor, element));
                let [hidden, weight] = on.each_ref().map(|memory| machine.view(memory));
                let softcap = softcap.map(|cap: f64| cap as f32);
                let head = Head { hidden, weight, width, vocabulary, softcap, gradients };
                let got = head.run(machine, &labelled).unwrap();
                let name = |what: &str| format!("linear_cross_entropy {what} {element:?}");
                assert_near(&name("losses"), &got.losses, &losses, tolerance(Element::F32));
                assert_equal_to(
                    &name("gradient of hidden"),
                    machine,
                    &got.grad_hidden,
                    &want.grad_hidden,
                    tolerance(element),
                );
                let (got, want) = (got.grad_weight.unwrap(), want.grad_weight.as_ref().unwrap());
                assert_equal_to(&name("gradient of the weight"), machine, &got, want, tolerance(element));
                let alone = Head { gradients: Gradients::Weight, ..head }.run(machine, &labelled).unwrap();
                let alone = alone.grad_weight.unwrap();
                assert_equal_to(&name("gradient of the weight alone"), machine, &alone, want, tolerance(element));
                let watched = Head { gradients: Gradients::None, ..head }.run(machine, &labelled).unwrap();
                assert_near(&name("losses alone"), &watched.losses, &losses, tolerance(Element::F32));
            }
        }
    }
}

#[test]
fn the_head_and_its_loss_equal_the_cpu() {
    everywhere(&Heads);
}

struct Lengths;

impl Trial for Lengths {
    fn run<M: Machine>(&self, machine: &M) {
        let (inputs, outputs, rank) = (300, 7, 3);
        let (w, a, b) = (exact(&[outputs, inputs], 1), exact(&[rank, inputs], 2), exact(&[outputs, rank], 3));
        let weight = Weight::from(w.clone());
        let squares = row_squares(&weight).unwrap();
        let want = row_norms(&weight, &squares, &a, &b, 0.7).unwrap();
        for element in BOTH {
            let w = bring(machine, &w, element);
            let got = dora::row_squares(machine, machine.view(&w), inputs).unwrap();
            assert!(got.iter().zip(&squares).all(|(got, want)| (got - want).abs() <= 1e-12 * want));
        }
        let products = [linear(&a, &w, None).unwrap(), linear(&a, &a, None).unwrap(), b];
        let on = products.map(|tensor| bring(machine, &tensor, Element::F32));
        let got = dora::row_norms(machine, on.each_ref().map(|memory| machine.view(memory)), &squares, 0.7).unwrap();
        assert_equal_to("dora row norms", machine, &got, &want, 0.0);
    }
}

#[test]
fn row_lengths_equal_the_cpu() {
    everywhere(&Lengths);
}
