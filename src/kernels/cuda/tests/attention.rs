//! Attention over records of every kind.

use std::sync::OnceLock;

use super::*;
use crate::kernels::attention::{Attention, Heads, attention};
use crate::kernels::cuda::attention::Saved;
use crate::kernels::spans::Spans;

struct Case {
    spans: Spans,
    shape: Heads,
    window: Option<usize>,
    softcap: Option<f64>,
}

impl Trial for Case {
    fn run<M: Machine>(&self, machine: &M) {
        let Heads { heads, key_heads, size } = self.shape;
        let (queries, keys, scale) = (self.spans.queries(), self.spans.keys(), 1.0 / (size as f64).sqrt());
        let [q, k, v] = [(queries, heads, 1), (keys, key_heads, 2), (keys, key_heads, 3)]
            .map(|(rows, heads, seed)| variable(&[rows, heads, size], seed));
        // Scores that differ enough for a softmax to matter.
        let q = Var::from_tensor(&(q.as_tensor() * 4.0).unwrap().detach()).unwrap();
        let grads = exact(&[queries, heads, size], 4);
        let out = attention(&q, &k, &v, &self.spans, scale, self.window, self.softcap).unwrap();
        let want = [&q, &k, &v].map(|var| gradient(&out, &grads, var));
        for element in BOTH {
            let op = Attention {
                spans: self.spans.clone(),
                shape: self.shape,
                scale: scale as f32,
                window: self.window,
                softcap: self.softcap.map(|cap| cap as f32),
                log_sums: OnceLock::new(),
                #[cfg(feature = "cuda")]
                on_device: OnceLock::new(),
            };
            let on =
                [q.as_tensor(), k.as_tensor(), v.as_tensor(), &grads].map(|tensor| bring(machine, tensor, element));
            let [q, k, v, grad] = on.each_ref().map(|memory| machine.view(memory));
            let name = |what: &str| format!("attention {size} {what} {element:?}");
            let (got, log_sums) = op.cuda_forward(machine, [q, k, v]).unwrap();
            assert_equal_to(&name("value"), machine, &got, &out, tolerance(element));
            // The gradient is that of the exact output, as on the CPU.
            let out = bring(machine, &out, element);
            let saved = Saved { q, k, v, out: machine.view(&out), log_sums: machine.view(&log_sums) };
            let (grad_q, grads_kv) = op.cuda_backward(machine, &saved, grad, [true, true]).unwrap();
            let [grad_k, grad_v] = grads_kv.unwrap();
            // Sums over many queries; the products of scores in bf16 are still f32.
            let tolerance = if element == Element::F32 { 5e-5 } else { 2.5e-2 };
            assert_equal_to(&name("gradient of q"), machine, &grad_q.unwrap(), &want[0], tolerance);
            assert_equal_to(&name("gradient of k"), machine, &grad_k, &want[1], tolerance);
            assert_equal_to(&name("gradient of v"), machine, &grad_v, &want[2], tolerance);
            let (none, some) = op.cuda_backward(machine, &saved, grad, [false, true]).unwrap();
            assert!(none.is_none() && some.is_some());
        }
    }
}

fn case(spans: &Spans, [heads, key_heads, size]: [usize; 3], window: Option<usize>, softcap: Option<f64>) {
    everywhere(&Case { spans: spans.clone(), shape: Heads { heads, key_heads, size }, window, softcap });
}

#[test]
fn packed_records_equal_the_cpu_for_heads_of_any_size() {
    let spans = Spans::packed(&[3, 45, 1, 0, 33]);
    for size in [3, 8, 32, 33, 80, 128, 130, 256] {
        case(&spans, [2, 1, size], None, None);
    }
}

#[test]
fn windows_and_caps_equal_the_cpu() {
    let spans = Spans::packed(&[70, 5, 97]);
    for (window, softcap) in
        [(Some(1), None), (Some(7), Some(0.8)), (Some(40), None), (Some(500), None), (None, Some(2.0))]
    {
        case(&spans, [4, 2, 16], window, softcap);
    }
}

#[test]
fn keys_from_before_and_keys_of_no_time_equal_the_cpu() {
    for window in [None, Some(6), Some(50)] {
        case(&Spans::with_cache(&[1, 2, 35], &[90, 2, 41]).unwrap(), [6, 2, 24], window, None);
    }
    case(&Spans::timeless(50, 3), [2, 2, 16], None, None);
    case(&Spans::timeless(3, 50), [2, 1, 16], None, None);
}
