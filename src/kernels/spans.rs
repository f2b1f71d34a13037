//! Which rows of a flat stream of tokens belong to one record, for attention: no padding anywhere,
//! so a record is a span of query rows and a span of key rows.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, bail};

/// One record's rows. The last query stands at the last key, so query `i` may see keys up to
/// `i + (keys - queries)`; where the keys belong to no time, every query sees all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    timeless: bool,
}

impl Span {
    /// Whether every query sees every key.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn is_timeless(&self) -> bool {
        self.timeless
    }

    /// The keys that query `row` (counted within the span) sees, counted within the span.
    pub(super) fn visible(&self, row: usize, window: Option<usize>) -> Range<usize> {
        if self.timeless {
            return 0..self.keys.len();
        }
        let end = row + 1 + (self.keys.len() - self.queries.len());
        let start = window.map_or(0, |window| end.saturating_sub(window));
        start..end
    }
}

/// The records of a flat stream, in order and without gaps. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    spans: Arc<[Span]>,
}

impl Spans {
    /// Records of these lengths, one after the other; every token is both query and key.
    pub fn packed(lengths: &[usize]) -> Self {
        let pairs = lengths.iter().map(|length| (*length, *length));
        Self { spans: spans_of(pairs) }
    }

    /// Records with `queries[i]` new tokens and `keys[i]` keys: those held from before (cached
    /// tokens, a trained prefix), then those of the new tokens.
    ///
    /// # Errors
    /// When the lists differ in length, or a record has fewer keys than queries.
    pub fn with_cache(queries: &[usize], keys: &[usize]) -> Result<Self> {
        if queries.len() != keys.len() {
            bail!("spans: {} records by queries, {} by keys", queries.len(), keys.len());
        }
        if let Some((queries, keys)) = queries.iter().zip(keys).find(|(queries, keys)| queries > keys) {
            bail!("spans: a record has {queries} queries but only {keys} keys");
        }
        Ok(Self { spans: spans_of(queries.iter().copied().zip(keys.iter().copied())) })
    }

    /// The same few keys for every query, whatever record it belongs to.
    pub fn timeless(queries: usize, keys: usize) -> Self {
        Self { spans: Arc::new([Span { queries: 0..queries, keys: 0..keys, timeless: true }]) }
    }

    /// How many query rows all records have together.
    pub fn queries(&self) -> usize {
        self.spans.last().map_or(0, |span| span.queries.end)
    }

    /// How many key rows all records have together.
    pub fn keys(&self) -> usize {
        self.spans.last().map_or(0, |span| span.keys.end)
    }

    /// The records, in order.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Span> {
        self.spans.iter()
    }
}

fn spans_of(pairs: impl Iterator<Item = (usize, usize)>) -> Arc<[Span]> {
    let (mut query, mut key) = (0, 0);
    pairs
        .map(|(queries, keys)| {
            let span = Span { queries: query..query + queries, keys: key..key + keys, timeless: false };
            (query, key) = (span.queries.end, span.keys.end);
            span
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_sees_the_keys_up_to_its_own_and_no_further_back_than_the_window() {
        let spans = Spans::with_cache(&[2, 1], &[5, 1]).unwrap();
        let first = spans.iter().next().unwrap();
        assert_eq!(first.visible(0, None), 0..4);
        assert_eq!(first.visible(1, None), 0..5);
        assert_eq!(first.visible(1, Some(2)), 3..5);
        assert_eq!(first.visible(0, Some(9)), 0..4);
        assert_eq!((spans.queries(), spans.keys()), (3, 6));
    }

    #[test]
    fn every_query_sees_all_keys_that_belong_to_no_time() {
        let spans = Spans::timeless(7, 3);
        assert_eq!((spans.queries(), spans.keys()), (7, 3));
        let span = spans.iter().next().unwrap();
        assert_eq!((span.visible(0, None), span.visible(6, None)), (0..3, 0..3));
    }

    #[test]
    fn more_queries_than_keys_are_refused() {
        assert!(Spans::with_cache(&[3], &[2]).is_err());
        assert!(Spans::with_cache(&[3], &[3, 1]).is_err());
    }
}
