//! The operations that go element by element or row by row.

use candle_core::Tensor;

use super::*;
use crate::kernels::dropout::Dropout;
use crate::kernels::embedding::Embedding;
use crate::kernels::gated::{Activation, gated};
use crate::kernels::lead::{Lead, lead};
use crate::kernels::nf4::{BLOCK, Nf4};
use crate::kernels::rms_norm::{RmsNorm, rms_norm};
use crate::kernels::rope::{Rope, rope};
use crate::kernels::{cuda::nf4::Resident, embedding};

struct Norms;

impl Trial for Norms {
    fn run<M: Machine>(&self, machine: &M) {
        // One row, more rows than a strip, narrower than a warp, wider than a block.
        for (rows, width, offset) in [(1, 1, 0.0), (150, 5, 1.0), (7, 97, 0.0), (3, 1100, 1.0)] {
            let (x, weight) = (variable(&[rows, width], 1), variable(&[width], 2));
            let grads = exact(&[rows, width], 3);
            let out = rms_norm(&x, &weight, 1e-5, offset).unwrap();
            let (grad_x, grad_weight) = (gradient(&out, &grads, &x), gradient(&out, &grads, &weight));
            for element in BOTH {
                let op = RmsNorm { eps: 1e-5, offset: offset as f32 };
                let on = [x.as_tensor(), weight.as_tensor(), &grads].map(|tensor| bring(machine, tensor, element));
                let [x, weight, grad] = on.each_ref().map(|memory| machine.view(memory));
                let name = |what: &str| format!("rms_norm {what} {element:?}");
                let got = op.cuda_forward(machine, x, weight).unwrap();
                assert_equal_to(&name("value"), machine, &got, &out, tolerance(element));
                let (got_x, got_weight) = op.cuda_backward(machine, [x, weight, grad], true).unwrap();
                assert_equal_to(&name("gradient of x"), machine, &got_x, &grad_x, tolerance(element));
                let got_weight = got_weight.unwrap();
                assert_equal_to(
                    &name("gradient of the weight"),
                    machine,
                    &got_weight,
                    &grad_weight,
                    tolerance(element),
                );
                assert!(op.cuda_backward(machine, [x, weight, grad], false).unwrap().1.is_none());
            }
        }
    }
}

#[test]
fn normalization_equals_the_cpu() {
    everywhere(&Norms);
}

struct Turns;

impl Trial for Turns {
    fn run<M: Machine>(&self, machine: &M) {
        for (tokens, heads, size, half) in [(1, 1, 2, 1), (37, 3, 10, 3), (5, 2, 64, 32)] {
            let x = variable(&[tokens, heads, size], 1);
            let angles = operand(&[tokens, half], 7);
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let grads = exact(&[tokens, heads, size], 3);
            let out = rope(&x, &cos, &sin).unwrap();
            let grad_x = gradient(&out, &grads, &x);
            let angles = [&cos, &sin].map(|tensor| bring(machine, tensor, Element::F32));
            let [cos, sin] = angles.each_ref().map(|memory| machine.view(memory));
            for element in BOTH {
                let op = Rope { heads, size, half };
                let (x, grad) = (bring(machine, &x, element), bring(machine, &grads, element));
                let got = op.cuda_turn(machine, [machine.view(&x), cos, sin], 1.0).unwrap();
                assert_equal_to(&format!("rope value {element:?}"), machine, &got, &out, tolerance(element));
                let got = op.cuda_turn(machine, [machine.view(&grad), cos, sin], -1.0).unwrap();
                assert_equal_to(&format!("rope gradient {element:?}"), machine, &got, &grad_x, tolerance(element));
            }
        }
    }
}

#[test]
fn rotation_equals_the_cpu() {
    everywhere(&Turns);
}

struct Gates;

impl Trial for Gates {
    fn run<M: Machine>(&self, machine: &M) {
        for (activation, count) in [(Activation::Silu, 777), (Activation::GeluTanh, 777), (Activation::Silu, 1)] {
            // Far gates too: shut, open, and past where a cube or an exponential overflows.
            let mut gates = flat(&(exact(&[count], 1) * 8.0).unwrap());
            for (gate, far) in gates.iter_mut().zip([0.0, -1e30, 1e30, -200.0, 200.0]) {
                *gate = if count == 1 { 0.5 } else { far };
            }
            let gate = Var::from_tensor(&Tensor::new(gates, &candle_core::Device::Cpu).unwrap()).unwrap();
            let gate = Var::from_tensor(
                &gate.to_dtype(candle_core::DType::BF16).unwrap().to_dtype(candle_core::DType::F32).unwrap(),
            )
            .unwrap();
            let (up, grads) = (variable(&[count], 2), exact(&[count], 3));
            let out = gated(&gate, &up, activation).unwrap();
            let (grad_gate, grad_up) = (gradient(&out, &grads, &gate), gradient(&out, &grads, &up));
            for element in BOTH {
                let on = [gate.as_tensor(), up.as_tensor(), &grads].map(|tensor| bring(machine, tensor, element));
                let [gate, up, grad] = on.each_ref().map(|memory| machine.view(memory));
                let name = |what: &str| format!("gated {activation:?} {what} {element:?}");
                let got = activation.cuda_forward(machine, gate, up).unwrap();
                assert_equal_to(&name("value"), machine, &got, &out, tolerance(element));
                let got = activation.cuda_backward(machine, [gate, up, grad], [true, true]).unwrap();
                let [got_gate, got_up] = got.map(Option::unwrap);
                assert_equal_to(&name("gradient of the gate"), machine, &got_gate, &grad_gate, tolerance(element));
                assert_equal_to(&name("gradient of up"), machine, &got_up, &grad_up, tolerance(element));
                let [none, some] = activation.cuda_backward(machine, [gate, up, grad], [false, true]).unwrap();
                assert!(none.is_none() && some.is_some());
            }
        }
    }
}

#[test]
fn gated_activations_equal_the_cpu() {
    everywhere(&Gates);
}

struct Masks;

impl Trial for Masks {
    fn run<M: Machine>(&self, machine: &M) {
        for (count, probability) in [(1, 0.9), (1000, 0.1), (4099, 0.5)] {
            let (dropout, x) = (Dropout { probability, key: 11 }, exact(&[count], 1));
            let want = dropout.masked(&flat(&x));
            let on = bring(machine, &x, Element::F32);
            let got = read(machine, &dropout.cuda_masked(machine, machine.view(&on)).unwrap());
            assert!(got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits()));
            let on = bring(machine, &x, Element::Bf16);
            let got = read(machine, &dropout.cuda_masked(machine, machine.view(&on)).unwrap());
            assert!(got.iter().zip(&want).all(|(got, want)| (*got == 0.0) == (*want == 0.0)));
            assert_near("dropout Bf16", &got, &want, tolerance(Element::Bf16));
        }
    }
}

#[test]
fn dropout_has_the_bits_of_the_cpu() {
    everywhere(&Masks);
}

struct Tables;

impl Trial for Tables {
    fn run<M: Machine>(&self, machine: &M) {
        for (ids, width) in [(vec![2u32, 0, 2, 2, 5, 0, 2], 3), (vec![4], 70), (vec![1; 90], 600)] {
            let table = variable(&[6, width], 1);
            let grads = exact(&[ids.len(), width], 2);
            let on_cpu = Tensor::new(ids.as_slice(), &candle_core::Device::Cpu).unwrap();
            let out = embedding(&table, &on_cpu).unwrap();
            let grad = gradient(&out, &grads, &table);
            for element in BOTH {
                let op = Embedding { ids: ids.clone() };
                let on = [table.as_tensor(), &grads].map(|tensor| bring(machine, tensor, element));
                let [table, grads] = on.each_ref().map(|memory| machine.view(memory));
                let got = op.cuda_forward(machine, table, width).unwrap();
                assert_equal_to(&format!("embedding value {element:?}"), machine, &got, &out, 0.0);
                let got = op.cuda_backward(machine, grads, 6 * width, width).unwrap();
                // In f32 the sums have the CPU's order, and so its bits.
                let tolerance = if element == Element::F32 { 0.0 } else { tolerance(element) };
                assert_equal_to(&format!("embedding gradient {element:?}"), machine, &got, &grad, tolerance);
            }
        }
    }
}

#[test]
fn embeddings_have_the_bits_of_the_cpu() {
    everywhere(&Tables);
}

struct Leads;

impl Trial for Leads {
    fn run<M: Machine>(&self, machine: &M) {
        for (leading, lengths, width) in [(2, vec![1, 0, 3, 2], 5), (1, vec![4], 300), (0, vec![2, 2], 3)] {
            let total = lengths.iter().sum();
            let (rows, x) = (variable(&[leading, width], 1), variable(&[total, width], 2));
            let grads = exact(&[total + leading * lengths.len(), width], 3);
            let out = lead(&rows, &x, &lengths).unwrap();
            let (grad_rows, grad_x) = (gradient(&out, &grads, &rows), gradient(&out, &grads, &x));
            for element in BOTH {
                let op = Lead { lengths: lengths.clone().into() };
                let on = [rows.as_tensor(), x.as_tensor(), &grads].map(|tensor| bring(machine, tensor, element));
                let [rows, x, grad] = on.each_ref().map(|memory| machine.view(memory));
                let got = op.cuda_forward(machine, rows, x, width).unwrap();
                assert_equal_to(&format!("lead value {element:?}"), machine, &got, &out, 0.0);
                let got = op.cuda_backward(machine, grad, leading, width, [true, true]).unwrap();
                let [got_rows, got_x] = got.map(Option::unwrap);
                let tolerance = if element == Element::F32 { 0.0 } else { tolerance(element) };
                assert_equal_to(
                    &format!("lead gradient of rows {element:?}"),
                    machine,
                    &got_rows,
                    &grad_rows,
                    tolerance,
                );
                assert_equal_to(&format!("lead gradient of x {element:?}"), machine, &got_x, &grad_x, 0.0);
            }
        }
    }
}

#[test]
fn rows_in_front_of_records_have_the_bits_of_the_cpu() {
    everywhere(&Leads);
}

struct Codes;

impl Trial for Codes {
    fn run<M: Machine>(&self, machine: &M) {
        // An odd count, blocks that are not full, and more than one block of magnitudes.
        for (rows, columns) in [(1, 1), (7, 9), (5, 64), (3, 100), (130, 2 * BLOCK + 1)] {
            let matrix = Nf4::quantize(&flat(&operand(&[rows, columns], 4)), rows, columns).unwrap();
            let resident = Resident::new(machine, &matrix).unwrap();
            let want = matrix.dequantize();
            let got = read(machine, &resident.decode(machine, Element::F32).unwrap());
            assert!(got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits()), "{rows} by {columns}");
            let rounded = Tensor::new(want, &candle_core::Device::Cpu).unwrap();
            let rounded = rounded.to_dtype(candle_core::DType::BF16).unwrap();
            let rounded = rounded.to_dtype(candle_core::DType::F32).unwrap();
            let got = resident.decode(machine, Element::Bf16).unwrap();
            assert_equal_to("nf4 Bf16", machine, &got, &rounded, 0.0);
        }
    }
}

#[test]
fn nf4_decodes_to_the_bits_of_the_cpu() {
    everywhere(&Codes);
}
