//! Keyset paging: a page begins after the creation time and id of the last row seen, so rows that
//! arrive meanwhile neither repeat nor hide others.

use super::text::text_enum;
use crate::clock::Millis;

text_enum! {
    /// The order of a listing, by creation time.
    pub enum Order {
        /// Oldest first.
        Ascending = "Ascending",
        /// Newest first.
        Descending = "Descending",
    }
}

/// The last row of the page before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Its creation time.
    pub creation_time: Millis,
    /// Its id: the tie-break.
    pub id: String,
}

/// What every listing can be narrowed by.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only rows made strictly later than this.
    pub created_after: Option<Millis>,
    /// Only rows made strictly earlier than this.
    pub created_before: Option<Millis>,
    /// Only rows whose name has this in it; case does not matter.
    pub name_contains: Option<String>,
    /// Oldest or newest first.
    pub order: Order,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    /// Rows per page, at least 1.
    pub limit: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            created_after: None,
            created_before: None,
            name_contains: None,
            order: Order::Descending,
            after: None,
            limit: 100,
        }
    }
}

/// One page.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    /// The rows, in order.
    pub items: Vec<T>,
    /// Where the next page begins; `None` on the last page.
    pub next: Option<Cursor>,
}

impl Filter {
    /// The cursor as two values to bind; without one, a point beyond every row in this order.
    pub(super) fn bounds(&self) -> (Millis, String) {
        match (&self.after, self.order) {
            (Some(cursor), _) => (cursor.creation_time, cursor.id.clone()),
            (None, Order::Ascending) => (Millis::MIN, String::new()),
            (None, Order::Descending) => (Millis::MAX, String::new()),
        }
    }

    /// A LIKE pattern over the lower-cased name, the caller's `_` and `%` taken literally.
    pub(super) fn pattern(&self) -> String {
        let mut pattern = String::from("%");
        for letter in self.name_contains.as_deref().unwrap_or_default().to_lowercase().chars() {
            if matches!(letter, '%' | '_' | '\\') {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
        pattern.push('%');
        pattern
    }

    /// One row more than the page holds: its presence says that there is a next page.
    pub(super) fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Cuts what was read to a page.
    pub(super) fn page<T>(&self, mut items: Vec<T>, cursor: impl Fn(&T) -> Cursor) -> Listed<T> {
        let limit = self.limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(cursor) } else { None };
        Listed { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_in_a_name_are_taken_literally() {
        let filter = Filter { name_contains: Some("A_b%c".into()), ..Filter::default() };
        assert_eq!(filter.pattern(), r"%a\_b\%c%");
        assert_eq!(Filter::default().pattern(), "%%");
    }

    #[test]
    fn the_last_page_has_no_next() {
        let filter = Filter { limit: 2, ..Filter::default() };
        let cursor = |n: &i64| Cursor { creation_time: *n, id: n.to_string() };
        assert_eq!(filter.page(vec![1, 2], cursor).next, None);
        let page = filter.page(vec![1, 2, 3], cursor);
        assert_eq!((page.items, page.next), (vec![1, 2], Some(Cursor { creation_time: 2, id: "2".into() })));
    }
}
