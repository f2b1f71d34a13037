//! The optimizer's update and the norm of gradients.

use super::*;
use crate::kernels::AdamWStep;
use crate::kernels::cuda::adamw::sum_of_squares;

struct Steps;

impl Trial for Steps {
    fn run<M: Machine>(&self, machine: &M) {
        let step = AdamWStep {
            scale: 0.37,
            keep: 0.999,
            mean_rate: 0.1,
            square_decay: 0.95,
            square_rate: 0.05,
            root_bias: 0.31,
            step: 0.02,
            epsilon: 1e-8,
        };
        for count in [1, 1000, 4097] {
            let [w, g, m, v] = [1, 2, 3, 4].map(|seed| operand(&[count], seed));
            let v = v.abs().unwrap();
            let [mut weight, gradient, mut mean, mut square] = [&w, &g, &m, &v].map(flat);
            step.update(&mut weight, &gradient, &mut mean, &mut square);
            let on = [w, g, m, v].map(|tensor| bring(machine, &tensor, Element::F32));
            step.cuda_update(machine, on.each_ref().map(|memory| machine.view(memory))).unwrap();
            for (memory, want) in [(&on[0], weight), (&on[2], mean), (&on[3], square)] {
                let got: Vec<f32> = machine.download(memory).unwrap();
                assert!(got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits()));
            }
        }
    }
}

#[test]
fn an_update_has_the_bits_of_the_cpu() {
    everywhere(&Steps);
}

struct Norms;

impl Trial for Norms {
    fn run<M: Machine>(&self, machine: &M) {
        for count in [1, 255, 40_000] {
            let x = exact(&[count], 5);
            let want: f64 = flat(&x).iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            for element in BOTH {
                let on = bring(machine, &x, element);
                let got = sum_of_squares(machine, machine.view(&on)).unwrap();
                assert!((got - want).abs() <= 1e-12 * want, "{got}, the CPU has {want}");
            }
        }
    }
}

#[test]
fn sums_of_squares_equal_the_cpu() {
    everywhere(&Norms);
}
