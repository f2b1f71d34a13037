//! The order in which a corpus is learned. Each epoch has its own seeded order; a batch is what one
//! optimizer step sees; it is cut into micro-batches that fit a budget of tokens. Micro-batches are one
//! flat stream of tokens without padding, and `lengths` says where each record ends. The two answers of a
//! preference are one unit: they are dealt together and never cut apart. Where the run stands is two numbers, so a
//! resumed run sees what the uninterrupted one would have seen.

use serde::{Deserialize, Serialize};

use super::corpus::Corpus;
use super::shuffle::Shuffle;

/// Fewer tokens than this are not worth a pass of their own.
const PART_TOKENS: usize = 64;

/// How batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSettings {
    /// Decides the order of every epoch.
    pub seed: u64,
    /// Records, or pairs of them, per optimizer step; with `row_tokens`, rows.
    pub batch_size: usize,
    /// The most tokens of a micro-batch; a record or pair that has more stands alone.
    pub token_budget: usize,
    /// Into how many micro-batches of about the same size a batch is cut, where it has enough records
    /// and tokens, so that cores can work on them side by side; 1 cuts by the budget alone.
    pub parts: usize,
    /// For continued pre-training: a row is as many sequences as fit into this many tokens.
    pub row_tokens: Option<usize>,
}

/// Where a run stands: the next batch begins here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// From 0.
    pub epoch: u64,
    /// How many records, or pairs, of the epoch are done.
    pub position: u64,
}

/// What one optimizer step sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The epoch it belongs to, from 0.
    pub epoch: u64,
    /// Its parts, in order.
    pub micro: Vec<MicroBatch>,
    /// Labelled tokens of all parts: what the sum of losses is divided by.
    pub labelled: usize,
    /// Is it the last of its epoch?
    pub ends_epoch: bool,
}

/// A flat stream of several records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MicroBatch {
    /// Tokens of all records, one after the other.
    pub tokens: Vec<u32>,
    /// For each token, the one the model shall say next, when that is to be learned.
    pub labels: Vec<Option<u32>>,
    /// Tokens of each record; they sum to the number of tokens.
    pub lengths: Vec<usize>,
    /// Which record of the corpus each is.
    pub records: Vec<usize>,
}

impl MicroBatch {
    /// The records `records` of `corpus`.
    pub fn gather(corpus: &Corpus, records: Vec<usize>) -> Self {
        let mut batch = Self { records, ..Self::default() };
        for &i in &batch.records {
            let record = corpus.record(i);
            let next = record.tokens.iter().zip(&record.learn).skip(1).map(|(token, learn)| learn.then_some(*token));
            batch.labels.extend(next.chain([None]));
            batch.lengths.push(record.tokens.len());
            batch.tokens.extend(record.tokens);
        }
        corpus.release();
        batch
    }

    /// How many tokens have a label.
    pub fn labelled(&self) -> usize {
        self.labels.iter().filter(|label| label.is_some()).count()
    }
}

/// How many records are looked at to find the largest micro-batch: a second's work at most.
const LOOKED_AT: usize = 1 << 20;
/// After so many steps what was read of the corpus to look at them is given back.
const STEPS_HELD: u64 = 4096;

/// The micro-batch with the most rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LargestMicroBatch {
    /// Its tokens, and the rows that stand before each record.
    pub rows: usize,
    /// Its records, by their number in the corpus.
    pub records: Vec<usize>,
    /// The most micro-batches of any step.
    pub micros: usize,
}

impl LargestMicroBatch {
    fn take(&mut self, corpus: &Corpus, records: Vec<usize>, lead: usize) {
        let rows = records.iter().map(|record| lead + corpus.length(*record)).sum();
        if rows > self.rows {
            (self.rows, self.records) = (rows, records);
        }
    }
}

/// Deals out a corpus without end, epoch after epoch.
#[derive(Debug)]
pub struct Batches<'a> {
    corpus: &'a Corpus,
    settings: BatchSettings,
    cursor: Cursor,
}

impl<'a> Batches<'a> {
    /// From `cursor` on; the default cursor is the beginning.
    pub fn new(corpus: &'a Corpus, settings: BatchSettings, cursor: Cursor) -> Self {
        Self { corpus, settings, cursor }
    }

    /// Where the next batch begins: goes into checkpoints.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// How many optimizer steps `epochs` epochs take.
    pub fn steps(&self, epochs: u64) -> u64 {
        let n = self.corpus.units() as u64;
        if self.settings.row_tokens.is_none() {
            return n.div_ceil(self.settings.batch_size.max(1) as u64) * epochs;
        }
        // How documents fall into rows depends on the order.
        let mut steps = 0;
        for epoch in 0..epochs {
            let order = Shuffle::new(n, self.settings.seed, epoch);
            let mut position = 0;
            while position < n {
                position = self.end_of_batch(&order, position);
                steps += 1;
            }
        }
        steps
    }

    /// The next batch.
    pub fn next_batch(&mut self) -> Batch {
        let Cursor { epoch, .. } = self.cursor;
        let micro: Vec<MicroBatch> =
            self.deal().into_iter().map(|records| MicroBatch::gather(self.corpus, records)).collect();
        let ends_epoch = self.cursor.epoch > epoch;
        let labelled = micro.iter().map(MicroBatch::labelled).sum();
        Batch { epoch, micro, labelled, ends_epoch }
    }

    /// The records of the next batch, micro-batch by micro-batch.
    fn deal(&mut self) -> Vec<Vec<usize>> {
        let Cursor { epoch, position } = self.cursor;
        let n = self.corpus.units() as u64;
        let order = Shuffle::new(n, self.settings.seed, epoch);
        let end = self.end_of_batch(&order, position);
        let units: Vec<usize> = (position..end).map(|at| order.at(at) as usize).collect();
        self.cursor = if end >= n { Cursor { epoch: epoch + 1, position: 0 } } else { Cursor { epoch, position: end } };
        let BatchSettings { parts, token_budget, .. } = self.settings;
        let shares = share_out(units, parts, token_budget, |unit| self.corpus.unit_length(unit));
        shares.into_iter().map(|units| records_of(self.corpus, units)).collect()
    }

    /// The largest micro-batch of the next `steps` steps, where every record stands behind `lead` further rows.
    /// After about a million records it looks no further: by then a batch was as full as batches get. The longest
    /// record of all is looked at in any case.
    pub fn largest(&self, steps: u64, lead: usize) -> LargestMicroBatch {
        let mut ahead = Self { corpus: self.corpus, settings: self.settings, cursor: self.cursor };
        let mut largest = LargestMicroBatch::default();
        let (mut looked_at, mut done) = (0, 0);
        while done < steps && looked_at < LOOKED_AT {
            let dealt = ahead.deal();
            largest.micros = largest.micros.max(dealt.len());
            for records in dealt {
                looked_at += records.len();
                largest.take(self.corpus, records, lead);
            }
            done += 1;
            // Each time is a system call for each file: not after every step.
            if done.is_multiple_of(STEPS_HELD) {
                self.corpus.release();
            }
        }
        if done < steps {
            let longest = (0..self.corpus.units()).max_by_key(|unit| self.corpus.unit_length(*unit));
            let records = longest.map(|unit| self.corpus.unit_records(unit));
            largest.take(self.corpus, records.into_iter().flatten().collect(), lead);
        }
        self.corpus.release();
        largest
    }

    /// Where the batch that begins at `position` ends; the last of an epoch may be smaller.
    fn end_of_batch(&self, order: &Shuffle, position: u64) -> u64 {
        let n = self.corpus.units() as u64;
        let batch_size = self.settings.batch_size.max(1);
        let Some(row_tokens) = self.settings.row_tokens else {
            return n.min(position + batch_size as u64);
        };
        let mut end = position;
        for _ in 0..batch_size {
            let mut tokens = 0;
            while end < n {
                let own = self.corpus.unit_length(order.at(end) as usize);
                tokens += own;
                if tokens > row_tokens && tokens > own {
                    break;
                }
                end += 1;
            }
        }
        end
    }
}

/// The corpus once, in its own order: for validation.
pub fn in_order(corpus: &Corpus, token_budget: usize) -> impl Iterator<Item = MicroBatch> {
    let length = move |unit| corpus.unit_length(unit);
    cut(0..corpus.units(), token_budget, length).map(move |units| MicroBatch::gather(corpus, records_of(corpus, units)))
}

/// Rows of the largest micro-batch of [`in_order`], each record behind `lead` further rows.
pub fn largest_in_order(corpus: &Corpus, token_budget: usize, lead: usize) -> usize {
    let rows = |units| records_of(corpus, units).iter().map(|record| lead + corpus.length(*record)).sum();
    let length = |unit| corpus.unit_length(unit);
    cut(0..corpus.units().min(LOOKED_AT), token_budget, length).map(rows).max().unwrap_or(0)
}

/// Deals units (records, pairs of them, or whatever else has a length in tokens) out into micro-batches: into `parts`
/// parts of about as many tokens each where there is enough for them, each of which is cut where it has more than
/// `token_budget` tokens.
pub(crate) fn share_out(
    units: Vec<usize>,
    parts: usize,
    token_budget: usize,
    length: impl Fn(usize) -> usize + Copy,
) -> Vec<Vec<usize>> {
    shares(units, parts, length).into_iter().flat_map(|share| cut(share.into_iter(), token_budget, length)).collect()
}

/// At most `parts` parts of about as many tokens each: the longest units first, always to the part that has least.
/// Parts are a power of two, so that cores come out even, and none is made for less than [`PART_TOKENS`].
fn shares(units: Vec<usize>, parts: usize, length: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let tokens: usize = units.iter().map(|unit| length(*unit)).sum();
    let parts = parts.min(units.len()).min(tokens / PART_TOKENS).max(1);
    let parts = 1 << parts.ilog2();
    if parts == 1 {
        return vec![units];
    }
    let mut longest_first = units;
    longest_first.sort_by_key(|unit| std::cmp::Reverse(length(*unit)));
    let mut shares = vec![(0, Vec::new()); parts];
    for unit in longest_first {
        if let Some((held, share)) = shares.iter_mut().min_by_key(|(held, _)| *held) {
            *held += length(unit);
            share.push(unit);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

/// Consecutive `units`, so many together as have at most `token_budget` tokens, or one that has more.
fn cut(
    units: impl Iterator<Item = usize>,
    token_budget: usize,
    length: impl Fn(usize) -> usize,
) -> impl Iterator<Item = Vec<usize>> {
    let mut units = units.peekable();
    std::iter::from_fn(move || {
        let first = units.next()?;
        let mut taken = vec![first];
        let mut tokens = length(first);
        while let Some(next) = units.next_if(|next| tokens + length(*next) <= token_budget) {
            tokens += length(next);
            taken.push(next);
        }
        Some(taken)
    })
}

/// The records of units.
fn records_of(corpus: &Corpus, units: Vec<usize>) -> Vec<usize> {
    units.into_iter().flat_map(|unit| corpus.unit_records(unit)).collect()
}
