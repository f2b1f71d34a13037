//! Every kernel, launched as the operations launch it, against the CPU's value and gradient: on the emulator,
//! and on a GPU where this build has the feature and the machine the card.

mod attention;
mod blocks;
mod optimizer;
mod paged;
mod products;
mod sources;

use candle_core::{Tensor, Var};

use super::emulator::Emulator;
use super::launch::{Element, Machine};
use super::vector::Converted;
use crate::kernels::gradcheck::{flat, operand};

/// A test on any machine.
trait Trial {
    fn run<M: Machine>(&self, machine: &M);
}

/// Runs a trial on every machine there is, and says which is not.
fn everywhere(trial: &impl Trial) {
    match Emulator::new() {
        Some(emulator) => trial.run(&emulator),
        None => eprintln!("skipped: no C++ compiler"),
    }
    #[cfg(feature = "cuda")]
    match super::device::Cuda::first() {
        Some(cuda) => trial.run(&cuda),
        None => eprintln!("skipped: no GPU"),
    }
}

const BOTH: [Element; 2] = [Element::F32, Element::Bf16];

/// The difference that is let pass, relative to the larger of one and the expected value.
fn tolerance(element: Element) -> f32 {
    if element == Element::Bf16 { 1.6e-2 } else { 2e-5 }
}

/// Brings a tensor's values onto the machine.
fn bring<M: Machine>(machine: &M, tensor: &Tensor, element: Element) -> M::Memory {
    let values = machine.upload(&flat(tensor)).unwrap();
    match Converted::new(machine, machine.view(&values), element).unwrap() {
        Converted::Copy(memory) => memory,
        Converted::Same(_) => values,
    }
}

/// The values of memory in f32 or bf16.
fn read<M: Machine>(machine: &M, memory: &M::Memory) -> Vec<f32> {
    match Converted::new(machine, machine.view(memory), Element::F32).unwrap() {
        Converted::Copy(values) => machine.download(&values).unwrap(),
        Converted::Same(_) => machine.download(memory).unwrap(),
    }
}

/// A random operand that both types hold exactly.
fn exact(shape: &[usize], seed: u32) -> Tensor {
    operand(shape, seed).to_dtype(candle_core::DType::BF16).unwrap().to_dtype(candle_core::DType::F32).unwrap()
}

/// As [`exact`], with a gradient.
fn variable(shape: &[usize], seed: u32) -> Var {
    Var::from_tensor(&exact(shape, seed)).unwrap()
}

/// Holds values of a machine to the CPU's.
#[track_caller]
fn assert_near(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut worst = 0f32;
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = (got - want).abs() / want.abs().max(1.0);
        assert!(difference <= tolerance, "{what} at {index}: {got}, the CPU has {want}");
        worst = worst.max(difference);
    }
    eprintln!("{what}: {} values, worst difference {worst:.1e}", got.len());
}

/// Holds memory of a machine to a tensor of the CPU.
#[track_caller]
fn assert_equal_to<M: Machine>(what: &str, machine: &M, got: &M::Memory, want: &Tensor, tolerance: f32) {
    assert_near(what, &read(machine, got), &flat(want), tolerance);
}

/// The gradient that a loss of `output` weighted with `weights` gives to `var`.
fn gradient(output: &Tensor, weights: &Tensor, var: &Var) -> Tensor {
    let loss = (output * weights).unwrap().sum_all().unwrap();
    loss.backward().unwrap().remove(var.as_tensor()).unwrap()
}
