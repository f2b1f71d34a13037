//! What all listings share: time window, name filter, order, page size, page token.

use utoipa::IntoParams;

use super::constraint::{Shape, Violations};
use super::shapes::{PaginationToken, SortBy, SortOrder, Time};
use crate::clock::Millis;
use crate::error::Result;
use crate::http::extract::Query;
use crate::http::page;
use crate::store::{Cursor, Filter, Order};

/// Rows on a page when the caller asks for no number.
const DEFAULT_PAGE: u32 = 100;

/// The query parameters that every listing knows.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Window {
    /// Only what was made later than this.
    #[param(inline)]
    pub creation_time_after: Option<Time>,
    /// Only what was made earlier than this.
    #[param(inline)]
    pub creation_time_before: Option<Time>,
    /// Only names with this in them; case does not matter. Each listing describes it by its own shape of names.
    #[param(ignore)]
    pub name_contains: Option<String>,
    /// How many to return at most.
    #[param(minimum = 1, maximum = 1000)]
    pub max_results: Option<u32>,
    /// Where the page before ended.
    #[param(inline)]
    pub next_token: Option<PaginationToken>,
    /// What to sort by.
    #[param(inline)]
    pub sort_by: Option<SortBy>,
    /// Newest first unless said otherwise.
    #[param(inline)]
    pub sort_order: Option<SortOrder>,
}

impl Window {
    /// Reads the parameters; `name` makes the shape that `nameContains` must have in this listing.
    pub fn read<N: Shape>(query: &Query, name: impl Fn(String) -> N, violations: &mut Violations) -> Self {
        Self::read_between(query, ("creationTimeAfter", "creationTimeBefore"), name, violations)
    }

    /// As [`Window::read`], for a listing whose time window has parameters of other names.
    pub fn read_between<N: Shape>(
        query: &Query,
        (after, before): (&str, &str),
        name: impl Fn(String) -> N,
        violations: &mut Violations,
    ) -> Self {
        let window = Self {
            creation_time_after: time(query, after, violations),
            creation_time_before: time(query, before, violations),
            name_contains: query.get("nameContains").map(str::to_string),
            max_results: query.get("maxResults").and_then(|text| count(text, violations)),
            next_token: query.get("nextToken").map(|text| PaginationToken(text.to_string())),
            sort_by: query.get("sortBy").map(|text| SortBy(text.to_string())),
            sort_order: query.get("sortOrder").map(|text| SortOrder(text.to_string())),
        };
        violations.optional("nameContains", window.name_contains.clone().map(name).as_ref());
        violations.optional("nextToken", window.next_token.as_ref());
        violations.optional("sortBy", window.sort_by.as_ref());
        violations.optional("sortOrder", window.sort_order.as_ref());
        window
    }

    /// The store's filter, and what the page token is bound to: the account, the listing's own name and
    /// filters (`own`), and the filters here.
    pub fn filter(self, own: &[&str]) -> Result<(Filter, Scope)> {
        let order = self.sort_order.as_ref().and_then(|order| Order::parse(&order.0)).unwrap_or(Order::Descending);
        let millis = |time: Option<Time>| time.map(|time| time.0);
        let text = |time: Option<Millis>| time.map(|time| time.to_string()).unwrap_or_default();
        let (after, before) = (millis(self.creation_time_after), millis(self.creation_time_before));
        let mut bound: Vec<String> = own.iter().map(|part| (*part).to_string()).collect();
        let name = self.name_contains.clone().unwrap_or_default();
        bound.extend([text(after), text(before), name, order.as_str().to_string()]);
        let scope = Scope(bound);
        let filter = Filter {
            created_after: after,
            created_before: before,
            name_contains: self.name_contains,
            order,
            after: self.next_token.map(|token| page::read(&token.0, &scope.parts())).transpose()?,
            limit: self.max_results.unwrap_or(DEFAULT_PAGE),
        };
        Ok((filter, scope))
    }
}

/// What a page token is bound to.
pub struct Scope(Vec<String>);

impl Scope {
    fn parts(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    /// The token of the next page, if there is one.
    pub fn token(&self, next: Option<&Cursor>) -> Option<String> {
        next.map(|cursor| page::write(cursor, &self.parts()))
    }
}

fn time(query: &Query, name: &str, violations: &mut Violations) -> Option<Time> {
    let text = query.get(name)?;
    let time = Time::parse(text);
    if time.is_none() {
        violations.add(text, name, "Member must be a timestamp such as 2024-02-01T12:34:56.789Z");
    }
    time
}

fn count(text: &str, violations: &mut Violations) -> Option<u32> {
    let Ok(count) = text.parse::<i64>() else {
        violations.add(text, "maxResults", "Member must be an integer");
        return None;
    };
    if count < 1 {
        violations.add(text, "maxResults", "Member must have value greater than or equal to 1");
    }
    if count > 1000 {
        violations.add(text, "maxResults", "Member must have value less than or equal to 1000");
    }
    u32::try_from(count).ok().filter(|count| (1..=1000).contains(count))
}
