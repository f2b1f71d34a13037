//! Paged moments have the bits of unpaged ones, in every order that the events leave open, and every wait is needed.

mod adversary;

use std::rc::Rc;

use self::adversary::Adversary;
use super::super::paged::{Copier, Paged, Update};
use super::*;
use crate::kernels::AdamWStep;
use crate::kernels::paging::Paging;

/// Values of each tensor: ones that end in the middle of a page, ones within a page, one over many.
const COUNTS: [usize; 4] = [70, 9, 1, 301];
/// Updates, none of which waits for the one before.
const UPDATES: usize = 3;

fn step(number: usize, tensor: usize) -> AdamWStep {
    AdamWStep {
        scale: 0.5 + number as f32,
        keep: 0.99,
        mean_rate: 0.1,
        square_decay: 0.95,
        square_rate: 0.05,
        root_bias: 0.31,
        step: 0.02 + tensor as f32 / 100.0,
        epsilon: 1e-8,
    }
}

/// In the second update the longest tensor gets no gradient, so that most pages stay away.
fn has_gradient(number: usize, tensor: usize) -> bool {
    number != 1 || tensor != 3
}

/// Weight, mean and mean square of each tensor.
type Values = Vec<[Vec<f32>; 3]>;

/// Tensors and gradients; moments of a run that goes on, or zeros.
fn beginning(goes_on: bool) -> (Values, Vec<Vec<Vec<f32>>>) {
    let values = |count: usize, seed: usize| flat(&operand(&[count], seed as u32));
    let tensors = COUNTS.iter().enumerate().map(|(tensor, count)| {
        let weight = values(*count, 10 + tensor);
        if !goes_on {
            return [weight, vec![0.0; *count], vec![0.0; *count]];
        }
        let square = values(*count, 30 + tensor).iter().map(|value| value.abs()).collect();
        [weight, values(*count, 20 + tensor), square]
    });
    let gradients = (0..UPDATES).map(|number| {
        COUNTS.iter().enumerate().map(|(tensor, count)| values(*count, 40 + 10 * number + tensor)).collect()
    });
    (tensors.collect(), gradients.collect())
}

/// What the CPU makes of it.
fn unpaged(goes_on: bool) -> Values {
    let (mut tensors, gradients) = beginning(goes_on);
    for (number, gradients) in gradients.iter().enumerate() {
        for (tensor, [weight, mean, square]) in tensors.iter_mut().enumerate() {
            if has_gradient(number, tensor) {
                step(number, tensor).update(weight, &gradients[tensor], mean, square);
            }
        }
    }
    tensors
}

/// What paged moments make of it.
fn paged<C: Copier + Clone>(copier: &C, paging: Paging, goes_on: bool) -> Values {
    let machine = copier.machine();
    let (tensors, gradients) = beginning(goes_on);
    let mut paged = Paged::zeros(copier.clone(), paging, &COUNTS).unwrap();
    for (tensor, [_, mean, square]) in tensors.iter().enumerate().filter(|_| goes_on) {
        paged.set(tensor, mean, square).unwrap();
    }
    let weights: Vec<_> = tensors.iter().map(|[weight, ..]| machine.upload(weight).unwrap()).collect();
    let gradients: Vec<Vec<_>> =
        gradients.iter().map(|all| all.iter().map(|one| machine.upload(one).unwrap()).collect()).collect();
    for (number, gradients) in gradients.iter().enumerate() {
        let updates = (0..COUNTS.len()).filter(|tensor| has_gradient(number, *tensor)).map(|tensor| Update {
            tensor,
            step: step(number, tensor),
            weight: machine.view(&weights[tensor]),
            gradient: machine.view(&gradients[tensor]),
        });
        paged.update(&updates.collect::<Vec<_>>()).unwrap();
    }
    let read = |tensor: usize| {
        let [mean, square] = paged.values(tensor).unwrap();
        [machine.download(&weights[tensor]).unwrap(), mean, square]
    };
    (0..COUNTS.len()).map(read).collect()
}

fn same_bits(one: &Values, other: &Values) -> bool {
    let bits = |all: &Values| -> Vec<u32> { all.iter().flatten().flatten().map(|value| value.to_bits()).collect() };
    bits(one) == bits(other)
}

fn emulator() -> Option<Rc<Emulator>> {
    let emulator = Emulator::new().map(Rc::new);
    if emulator.is_none() {
        eprintln!("skipped: no C++ compiler");
    }
    emulator
}

#[test]
fn paged_moments_have_the_bits_of_unpaged_ones_in_whatever_order_the_queues_run() {
    let Some(emulator) = emulator() else { return };
    let want = [false, true].map(unpaged);
    let total = COUNTS.iter().sum::<usize>() as u64;
    for (page, buffers) in [(32, 3), (32, 2), (32, 1), (50, 3), (7, 4), (200, 2), (1000, 3)] {
        let paging = Paging { page, buffers };
        for seed in 0..12 {
            let adversary = Adversary::new(&emulator, seed, None);
            let goes_on = seed % 2 == 1;
            let got = paged(&adversary, paging, goes_on);
            assert!(same_bits(&got, &want[usize::from(goes_on)]), "{paging:?}, seed {seed}");
            let state = adversary.state.borrow();
            assert_eq!(state.collisions, 0, "{paging:?}, seed {seed}");
            assert_eq!(state.device_bytes as u64, paging.device_bytes(total), "{paging:?}");
            assert_eq!(state.pinned_bytes as u64, Paging::host_bytes(total), "{paging:?}");
        }
    }
}

#[test]
fn every_wait_keeps_something_from_going_wrong() {
    let Some(emulator) = emulator() else { return };
    // Nothing but events keeps the order here: a run that begins sets no moments, which would wait for everything.
    let want = unpaged(false);
    for buffers in [1, 2, 3] {
        let paging = Paging { page: 64, buffers };
        let counting = Adversary::new(&emulator, 0, None);
        paged(&counting, paging, false);
        let waits = counting.state.borrow().waits;
        // Six pages, then two, then six again: each is waited for when it has come and when it is done, and most
        // buffers until they are free.
        assert!(waits > 2 * (6 + 2 + 6), "{waits}");
        for left_out in 0..waits {
            let goes_wrong = (0..200).any(|seed| {
                let adversary = Adversary::new(&emulator, seed, Some(left_out));
                let differs = !same_bits(&paged(&adversary, paging, false), &want);
                differs || adversary.state.borrow().collisions > 0
            });
            assert!(goes_wrong, "wait {left_out} of {waits} with {buffers} buffers is for nothing");
        }
    }
}

#[test]
fn a_tensor_that_is_not_the_one_the_moments_were_made_for_is_refused() {
    let Some(emulator) = emulator() else { return };
    let adversary = Adversary::new(&emulator, 0, None);
    let mut paged = Paged::zeros(adversary.clone(), Paging { page: 4, buffers: 2 }, &[6, 3]).unwrap();
    assert!(paged.values(2).is_err() && paged.set(0, &[0.0; 6], &[0.0; 5]).is_err());
    let (long, short) = (adversary.upload(&[0f32; 6]).unwrap(), adversary.upload(&[0f32; 3]).unwrap());
    let update = |tensor, weight| Update {
        tensor,
        step: step(0, 0),
        weight: adversary.view(weight),
        gradient: adversary.view(weight),
    };
    assert!(paged.update(&[update(0, &short)]).is_err());
    assert!(paged.update(&[update(1, &short), update(0, &long)]).is_err());
    assert!(paged.update(&[update(0, &long), update(1, &short)]).is_ok());
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_pages_moments_without_changing_a_bit() {
    use super::super::copies::Copies;
    let Some(cuda) = super::super::device::Cuda::first() else {
        eprintln!("skipped: no GPU");
        return;
    };
    let copies = Copies::of(cuda).unwrap();
    for (page, buffers) in [(32, 3), (32, 1), (7, 4), (1000, 3)] {
        for goes_on in [false, true].repeat(10) {
            let got = paged(&copies, Paging { page, buffers }, goes_on);
            assert!(same_bits(&got, &unpaged(goes_on)), "pages of {page}, {buffers} buffers");
        }
    }
}
