//! Rows of sequences with different tunings in one pass: the base's products are made once for all rows, and each
//! tuning's own part for its rows. The order of every row's arithmetic is the same whoever stands beside it.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::kernels::{RowsUpdate, Weight, each_row_alone, update_rows};
use crate::models::{Attention, Decoder, Frozen, Map, Site, Tuning};

/// Which tuning each row of a pass has; those of one tuning lie together.
pub(super) struct Mixed<'a> {
    groups: Vec<(Range<usize>, &'a dyn Tuning)>,
}

/// Tells tunings apart that hold anything.
pub(super) fn identity(tuning: &dyn Tuning) -> usize {
    std::ptr::from_ref(tuning).cast::<()>() as usize
}

impl<'a> Mixed<'a> {
    /// The tuning of each row, in order.
    pub(super) fn new(rows: impl Iterator<Item = &'a dyn Tuning>) -> Self {
        let mut groups: Vec<(Range<usize>, &'a dyn Tuning)> = Vec::new();
        for (row, tuning) in rows.enumerate() {
            match groups.last_mut().filter(|(_, last)| identity(*last) == identity(tuning)) {
                Some((rows, _)) => rows.end = row + 1,
                None => groups.push((row..row + 1, tuning)),
            }
        }
        Self { groups }
    }

    /// The logits of each row of normalised states.
    pub(super) fn logits(&self, decoder: &Decoder, states: &Tensor) -> crate::error::Result<Vec<Vec<f32>>> {
        let read = |states: &Tensor, tuning: &dyn Tuning| -> crate::error::Result<Vec<Vec<f32>>> {
            Ok(decoder.logits_of(states, tuning)?.detach().to_dtype(DType::F32)?.to_vec2()?)
        };
        if self.groups.iter().all(|(_, tuning)| tuning.head().is_none()) {
            return read(states, &Frozen);
        }
        let mut logits = vec![Vec::new(); states.dim(0)?];
        let mut shared: Vec<u32> = Vec::new();
        for (rows, tuning) in &self.groups {
            if tuning.head().is_none() {
                shared.extend(rows.start as u32..rows.end as u32);
                continue;
            }
            let own = read(&states.narrow(0, rows.start, rows.len())?, *tuning)?;
            logits[rows.clone()].iter_mut().zip(own).for_each(|(place, own)| *place = own);
        }
        if !shared.is_empty() {
            let rows = Tensor::from_slice(&shared, shared.len(), states.device())?;
            let own = read(&states.index_select(&rows, 0)?, &Frozen)?;
            shared.into_iter().zip(own).for_each(|(row, own)| logits[row as usize] = own);
        }
        Ok(logits)
    }

    /// `of` with the rows of each tuning as its hook gives them back.
    fn each(&self, of: Tensor, hook: impl Fn(&dyn Tuning, &Range<usize>, Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if let [(rows, tuning)] = &self.groups[..] {
            return hook(*tuning, rows, of);
        }
        let mut changed = false;
        let mut parts = Vec::with_capacity(self.groups.len());
        for (rows, tuning) in &self.groups {
            let own = of.narrow(0, rows.start, rows.len())?;
            let id = own.id();
            let part = hook(*tuning, rows, own)?;
            changed |= part.id() != id;
            parts.push(part);
        }
        if changed { Tensor::cat(&parts, 0) } else { Ok(of) }
    }
}

impl Tuning for Mixed<'_> {
    fn linear(&self, site: Site, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        let mut updates = Vec::new();
        for (rows, tuning) in &self.groups {
            if let Some(own) = tuning.low_rank(site, weight)? {
                let (a, b, stretch) = (own.a.detach(), own.b.detach(), own.stretch.map(|stretch| stretch.detach()));
                updates.push(RowsUpdate { rows: rows.clone(), a, b, scale: own.scale, stretch });
            }
        }
        update_rows(weight.apply(x, None)?.detach(), x, updates, bias.map(Tensor::detach).as_ref())
    }

    /// Side by side: with few rows none of them is worth all threads, and the rows' own parts less still.
    fn linears(&self, x: &Tensor, maps: &[Map<'_>]) -> Result<Vec<Tensor>> {
        let one = |Map { site, weight, bias }: &Map<'_>| self.linear(*site, x, weight, *bias);
        if !x.device().is_cpu() {
            return maps.iter().map(one).collect();
        }
        maps.par_iter().with_max_len(1).map(|map| each_row_alone(|| one(map))).collect()
    }

    fn after_attention(&self, layer: usize, residual: &Tensor, added: Tensor) -> Result<Tensor> {
        self.each(added, |tuning, rows, added| {
            tuning.after_attention(layer, &residual.narrow(0, rows.start, rows.len())?, added)
        })
    }

    fn after_mlp(&self, layer: usize, residual: &Tensor, added: Tensor) -> Result<Tensor> {
        self.each(added, |tuning, rows, added| {
            tuning.after_mlp(layer, &residual.narrow(0, rows.start, rows.len())?, added)
        })
    }

    fn beside_attention(&self, attention: &Attention<'_>, heads: Tensor) -> Result<Tensor> {
        self.each(heads, |tuning, rows, heads| {
            let queries = attention.queries.narrow(0, rows.start, rows.len())?;
            tuning.beside_attention(&Attention { queries: &queries, ..*attention }, heads)
        })
    }
}
