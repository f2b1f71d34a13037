//! One query against the keys it sees, which is what every step of decoding comes to: too little for a matrix
//! product, and read straight from where keys and values lie. The order of every sum follows from the number of
//! keys alone, so where they lie and who attends beside changes no bit.

use super::cpu::Task;
use super::{Attention, Heads};
use crate::kernels::few_rows::inner_products;
use crate::kernels::vector::{exp_and_sum, max, prefetch_all, soft_cap, vectorized};

/// Values that are added to an output before it is written back.
const TOGETHER: usize = 4;
/// Keys that are asked for ahead.
const AHEAD: usize = 16;

impl Attention {
    /// As [`Attention::forward_block`] for a block of one query, of all heads that read the same keys.
    pub(super) fn one_query(&self, scores: &mut Vec<f32>, task: &Task<'_>) -> (Vec<f32>, Vec<f32>) {
        let Task { span, block, heads, q, k, v } = task;
        let Heads { heads: all, key_heads, size } = self.shape;
        let query = (span.queries.start + block.queries.start) * all;
        let queries: Vec<&[f32]> =
            q[(query + heads.start) * size..(query + heads.end) * size].chunks_exact(size).collect();
        let (first, keys, key_head) =
            (span.keys.start + block.keys.start, block.keys.len(), self.shape.key_head(heads.start));
        let row = |key: usize| {
            let at = ((first + key) * key_heads + key_head) * size;
            at..at + size
        };
        scores.resize(heads.len() * keys, 0.0);
        // The rows of one head lie apart, and a CPU does not see by itself which come next.
        let key = |key: usize| {
            if key + AHEAD < keys {
                prefetch_all(&k[row(key + AHEAD)]);
            }
            prefetch_all(&v[row(key)]);
            &k[row(key)]
        };
        inner_products(&queries, keys, key, self.scale, scores);
        let (mut out, mut log_sums) = (vec![0f32; heads.len() * size], vec![0f32; heads.len()]);
        vectorized(
            #[inline(always)]
            || {
                if let Some(cap) = self.softcap {
                    soft_cap(scores, cap);
                }
                let mut sums = vec![0f32; heads.len()];
                for ((scores, sum), log_sum) in scores.chunks_exact_mut(keys).zip(&mut sums).zip(&mut log_sums) {
                    let largest = max(scores);
                    *sum = exp_and_sum(scores, largest);
                    *log_sum = largest + sum.ln();
                }
                // A value is read once for all heads.
                let whole = keys / TOGETHER * TOGETHER;
                for key in (0..whole).step_by(TOGETHER) {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|next| &v[row(key + next)]);
                    for (out, scores) in out.chunks_exact_mut(size).zip(scores.chunks_exact(keys)) {
                        let weights = [scores[key], scores[key + 1], scores[key + 2], scores[key + 3]];
                        for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                            let sum = weights[1].mul_add(*b, weights[0].mul_add(*a, *out));
                            *out = weights[3].mul_add(*d, weights[2].mul_add(*c, sum));
                        }
                    }
                }
                for ((out, scores), sum) in out.chunks_exact_mut(size).zip(scores.chunks_exact(keys)).zip(sums) {
                    for (key, weight) in scores.iter().enumerate().skip(whole) {
                        for (out, value) in out.iter_mut().zip(&v[row(key)]) {
                            *out = weight.mul_add(*value, *out);
                        }
                    }
                    let inverse = sum.recip();
                    out.iter_mut().for_each(|out| *out *= inverse);
                }
            },
        );
        (out, log_sums)
    }
}
