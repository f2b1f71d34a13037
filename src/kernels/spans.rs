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
    /// Rows of keys; those that no record uses count too.
    keys: usize,
}

impl Spans {
    /// Records of these lengths, one after the other; every token is both query and key.
    pub fn packed(lengths: &[usize]) -> Self {
        let pairs = lengths.iter().map(|length| (*length, *length));
        Self::adjacent(pairs)
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
        Ok(Self::adjacent(queries.iter().copied().zip(keys.iter().copied())))
    }

    /// One new token for each record, whose keys lie at these places among `rows` rows: keys that stay where
    /// they are while records come and go.
    ///
    /// # Errors
    /// When a place is empty or reaches past the rows.
    pub fn placed(places: &[Range<usize>], rows: usize) -> Result<Self> {
        if let Some(place) = places.iter().find(|place| place.is_empty() || place.end > rows) {
            bail!("spans: no record's keys lie at {place:?} of {rows} rows");
        }
        let span = |(query, keys): (usize, &Range<usize>)| Span {
            queries: query..query + 1,
            keys: keys.clone(),
            timeless: false,
        };
        Ok(Self { spans: places.iter().enumerate().map(span).collect(), keys: rows })
    }

    /// The same few keys for every query, whatever record it belongs to.
    pub fn timeless(queries: usize, keys: usize) -> Self {
        Self { spans: Arc::new([Span { queries: 0..queries, keys: 0..keys, timeless: true }]), keys }
    }

    /// As [`Spans::timeless`], with every query by itself, so that how many there are changes the bits of none.
    pub fn timeless_each(queries: usize, keys: usize) -> Self {
        let span = |query| Span { queries: query..query + 1, keys: 0..keys, timeless: true };
        Self { spans: (0..queries).map(span).collect(), keys }
    }

    /// How many query rows all records have together.
    pub fn queries(&self) -> usize {
        self.spans.last().map_or(0, |span| span.queries.end)
    }

    /// How many key rows all records have together.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Records of so many queries and keys, one after the other.
    fn adjacent(pairs: impl Iterator<Item = (usize, usize)>) -> Self {
        let (mut query, mut key) = (0, 0);
        let spans = pairs
            .map(|(queries, keys)| {
                let span = Span { queries: query..query + queries, keys: key..key + keys, timeless: false };
                (query, key) = (span.queries.end, span.keys.end);
                span
            })
            .collect();
        Self { spans, keys: key }
    }

    /// The records, in order.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Span> {
        self.spans.iter()
    }
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
    #[expect(clippy::single_range_in_vec_init, reason = "one record that lies in one range")]
    fn keys_of_placed_records_lie_anywhere_among_the_rows_and_nowhere_else() {
        let spans = Spans::placed(&[6..9, 0..2], 12).unwrap();
        assert_eq!((spans.queries(), spans.keys()), (2, 12));
        let seen: Vec<_> = spans.iter().map(|span| (span.queries.clone(), span.visible(0, None))).collect();
        assert_eq!(seen, [(0..1, 0..3), (1..2, 0..2)]);
        assert!(Spans::placed(&[6..9], 8).is_err());
        assert!(Spans::placed(&[3..3], 8).is_err());
    }

    #[test]
    fn more_queries_than_keys_are_refused() {
        assert!(Spans::with_cache(&[3], &[2]).is_err());
        assert!(Spans::with_cache(&[3], &[3, 1]).is_err());
    }
}
