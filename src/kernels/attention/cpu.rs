//! Attention on the CPU: one task per record, head and block of queries forward, one per record and
//! head backward. Tasks write memory of their own that is put in place afterwards in a fixed order.

use std::ops::Range;

use rayon::prelude::*;

use super::{Attention, Heads};
use crate::kernels::matmul::{Matrix, Threads, Write, matmul};
use crate::kernels::spans::Span;
use crate::kernels::vector::{dot, exp, exp_and_sum, max, soft_cap, vectorized};

/// Queries per block: enough rows to keep the products busy, few enough that a block's scores over
/// some thousand keys stay in the cache.
const BLOCK: usize = 64;

/// What the backward pass reads.
pub(super) struct Forward<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) out: &'a [f32],
    pub(super) log_sums: &'a [f32],
}

/// One head of a block of queries, or of one query all heads that read the same keys; and what is read.
pub(super) struct Task<'a> {
    pub(super) span: &'a Span,
    pub(super) block: Block,
    pub(super) heads: Range<usize>,
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
}

/// A block of queries of one record and the keys that any of them sees, both counted in the span.
#[derive(Clone)]
pub(super) struct Block {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Heads {
    /// One head of some rows of q or of a tensor shaped like it.
    fn query_rows<'a>(&self, values: &'a [f32], rows: Range<usize>, head: usize) -> Matrix<'a> {
        self.rows(values, rows, head, self.heads)
    }

    /// The key head that belongs to query head `head`, of some rows of k or v.
    fn key_rows<'a>(&self, values: &'a [f32], rows: Range<usize>, head: usize) -> Matrix<'a> {
        self.rows(values, rows, self.key_head(head), self.key_heads)
    }

    fn rows<'a>(&self, values: &'a [f32], rows: Range<usize>, head: usize, heads: usize) -> Matrix<'a> {
        let stride = heads * self.size;
        Matrix::strided(&values[rows.start * stride + head * self.size..], rows.len(), self.size, stride)
    }
}

fn shift(rows: &Range<usize>, by: usize) -> Range<usize> {
    rows.start + by..rows.end + by
}

impl Attention {
    fn blocks<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = Block> + 'a {
        (0..span.queries.len()).step_by(BLOCK).map(move |start| {
            let end = (start + BLOCK).min(span.queries.len());
            let first = span.visible(start, self.window).start;
            Block { queries: start..end, keys: first..span.visible(end - 1, self.window).end }
        })
    }

    /// The scores of a block, `[queries, keys]`, capped, before the softmax.
    fn scores(&self, scores: &mut Vec<f32>, span: &Span, block: &Block, head: usize, q: &[f32], k: &[f32]) {
        let q = self.shape.query_rows(q, shift(&block.queries, span.queries.start), head);
        let k = self.shape.key_rows(k, shift(&block.keys, span.keys.start), head);
        scores.resize(block.queries.len() * block.keys.len(), 0.0);
        matmul(scores, Write::Replace, self.scale, q, k.t(), Threads::One);
        if let Some(cap) = self.softcap {
            vectorized(
                #[inline(always)]
                || soft_cap(scores, cap),
            );
        }
    }

    /// The columns of a block's scores that its `row` sees.
    fn visible(&self, span: &Span, block: &Block, row: usize) -> Range<usize> {
        let keys = span.visible(block.queries.start + row, self.window);
        keys.start - block.keys.start..keys.end - block.keys.start
    }

    /// The output `[N, Hq, d]` and the log-sum-exp of every row of scores `[N, Hq]`.
    pub(super) fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let Heads { heads, key_heads, size } = self.shape;
        let blocks = self.spans.iter().flat_map(|span| self.blocks(span).map(move |block| (span, block)));
        let tasks: Vec<Task<'_>> = blocks
            .flat_map(|(span, block)| {
                let together = if block.queries.len() == 1 { heads / key_heads } else { 1 };
                let of = move |first| Task { span, block: block.clone(), heads: first..first + together, q, k, v };
                (0..heads).step_by(together).map(of)
            })
            .collect();
        let done: Vec<(Vec<f32>, Vec<f32>)> = tasks
            .par_iter()
            .with_max_len(1)
            .map_init(Vec::new, |scores, task| self.forward_block(scores, task))
            .collect();
        let (mut out, mut log_sums) = (vec![0f32; q.len()], vec![0f32; q.len() / size]);
        for (Task { span, block, heads: of, .. }, (values, sums)) in tasks.iter().zip(done) {
            let first = (span.queries.start + block.queries.start) * heads + of.start;
            // Several heads are those of one query and lie together; several queries lie a query apart.
            let apart = if of.len() == 1 { heads } else { 1 };
            for (row, (values, sum)) in values.chunks_exact(size).zip(sums).enumerate() {
                let place = first + row * apart;
                out[place * size..(place + 1) * size].copy_from_slice(values);
                log_sums[place] = sum;
            }
        }
        (out, log_sums)
    }

    fn forward_block(&self, scores: &mut Vec<f32>, task: &Task<'_>) -> (Vec<f32>, Vec<f32>) {
        let Task { span, block, heads, q, k, v } = task;
        let (rows, keys, size) = (block.queries.len(), block.keys.len(), self.shape.size);
        if rows == 1 {
            return self.one_query(scores, task);
        }
        let head = heads.start;
        self.scores(scores, span, block, head, q, k);
        let mut sums = vec![0f32; rows];
        let mut log_sums = vec![0f32; rows];
        vectorized(
            #[inline(always)]
            || {
                for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                    let seen = self.visible(span, block, row);
                    let largest = max(&scores[seen.clone()]);
                    sums[row] = exp_and_sum(&mut scores[seen.clone()], largest);
                    log_sums[row] = largest + sums[row].ln();
                    scores[..seen.start].fill(0.0);
                    scores[seen.end..].fill(0.0);
                }
            },
        );
        let mut out = vec![0f32; rows * size];
        let v = self.shape.key_rows(v, shift(&block.keys, span.keys.start), head);
        matmul(&mut out, Write::Replace, 1.0, Matrix::new(scores, rows, keys), v, Threads::One);
        // Dividing d values at the end costs less than dividing every probability.
        for (out, sum) in out.chunks_exact_mut(size).zip(sums) {
            let inverse = sum.recip();
            for out in out {
                *out *= inverse;
            }
        }
        (out, log_sums)
    }

    /// The gradients of q, k and v for the gradient of the output.
    pub(super) fn backward(&self, saved: &Forward<'_>, grad: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let Heads { heads, key_heads, size } = self.shape;
        let tasks: Vec<(&Span, usize)> =
            self.spans.iter().flat_map(|span| (0..heads).map(move |head| (span, head))).collect();
        let done: Vec<[Vec<f32>; 3]> =
            tasks.par_iter().map(|(span, head)| self.backward_head(span, *head, saved, grad)).collect();
        let mut grad_q = vec![0f32; saved.q.len()];
        let (mut grad_k, mut grad_v) = (vec![0f32; saved.k.len()], vec![0f32; saved.v.len()]);
        for ((span, head), [q, k, v]) in tasks.iter().zip(done) {
            add_rows(&mut grad_q[span.queries.start * heads * size..], &q, *head, heads, size);
            // The heads of a group read one key head: their gradients add up, in the order of the heads.
            let keys = span.keys.start * key_heads * size;
            add_rows(&mut grad_k[keys..], &k, self.shape.key_head(*head), key_heads, size);
            add_rows(&mut grad_v[keys..], &v, self.shape.key_head(*head), key_heads, size);
        }
        (grad_q, grad_k, grad_v)
    }

    /// The gradients of one record's q (one head), k and v (the share of that head).
    fn backward_head(&self, span: &Span, head: usize, saved: &Forward<'_>, grad: &[f32]) -> [Vec<f32>; 3] {
        let Heads { heads, size, .. } = self.shape;
        let mut grad_q = vec![0f32; span.queries.len() * size];
        let mut grad_k = vec![0f32; span.keys.len() * size];
        let mut grad_v = vec![0f32; span.keys.len() * size];
        let (mut probabilities, mut slopes) = (Vec::new(), Vec::new());
        // d (c · tanh(s / c)) / ds = 1 - (capped / c)²; with no cap this is 1 for every score.
        let inverse_cap = self.softcap.map_or(0.0, f32::recip);
        for block in self.blocks(span) {
            let (rows, keys) = (block.queries.len(), block.keys.len());
            let (placed, placed_keys) =
                (shift(&block.queries, span.queries.start), shift(&block.keys, span.keys.start));
            let q = self.shape.query_rows(saved.q, placed.clone(), head);
            let k = self.shape.key_rows(saved.k, placed_keys.clone(), head);
            let v = self.shape.key_rows(saved.v, placed_keys, head);
            let grad_out = self.shape.query_rows(grad, placed, head);
            self.scores(&mut probabilities, span, &block, head, saved.q, saved.k);
            slopes.resize(rows * keys, 0.0);
            matmul(&mut slopes, Write::Replace, 1.0, grad_out, v.t(), Threads::One);
            vectorized(
                #[inline(always)]
                || {
                    let both = probabilities.chunks_exact_mut(keys).zip(slopes.chunks_exact_mut(keys));
                    for (row, (probabilities, slopes)) in both.enumerate() {
                        let place = (span.queries.start + block.queries.start + row) * heads + head;
                        let head_values = place * size..(place + 1) * size;
                        // Σ over keys of p·dp, which equals the inner product of output and its gradient.
                        let mean = dot(&saved.out[head_values.clone()], &grad[head_values]);
                        let log_sum = saved.log_sums[place];
                        let seen = self.visible(span, &block, row);
                        for (p, slope) in probabilities[seen.clone()].iter_mut().zip(&mut slopes[seen.clone()]) {
                            let capped = *p * inverse_cap;
                            *p = exp(*p - log_sum);
                            *slope = *p * (*slope - mean) * (1.0 - capped * capped);
                        }
                        for hidden in [0..seen.start, seen.end..keys] {
                            probabilities[hidden.clone()].fill(0.0);
                            slopes[hidden].fill(0.0);
                        }
                    }
                },
            );
            let (probabilities, slopes) = (Matrix::new(&probabilities, rows, keys), Matrix::new(&slopes, rows, keys));
            let out_q = &mut grad_q[block.queries.start * size..block.queries.end * size];
            matmul(out_q, Write::Replace, self.scale, slopes, k, Threads::One);
            let in_span = block.keys.start * size..block.keys.end * size;
            matmul(&mut grad_k[in_span.clone()], Write::Add, self.scale, slopes.t(), q, Threads::One);
            matmul(&mut grad_v[in_span], Write::Add, 1.0, probabilities.t(), grad_out, Threads::One);
        }
        [grad_q, grad_k, grad_v]
    }
}

/// Adds one head's rows to its columns in rows of `heads` heads.
fn add_rows(into: &mut [f32], rows: &[f32], head: usize, heads: usize, size: usize) {
    for (into, row) in into.chunks_mut(heads * size).zip(rows.chunks_exact(size)) {
        for (into, value) in into[head * size..(head + 1) * size].iter_mut().zip(row) {
            *into += value;
        }
    }
}
