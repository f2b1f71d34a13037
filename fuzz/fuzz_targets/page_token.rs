//! Page tokens: what the service did not write is refused, and what it wrote for one listing is nothing to another.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunesmith::http::page::{read, write};
use tunesmith::store::Cursor;

fuzz_target!(|input: (String, i64, String, Vec<String>)| {
    let (token, creation_time, id, scope) = input;
    let scope: Vec<&str> = scope.iter().map(String::as_str).collect();
    if let Ok(cursor) = read(&token, &scope) {
        assert_eq!(read(&write(&cursor, &scope), &scope).ok(), Some(cursor));
    }
    let cursor = Cursor { creation_time, id };
    let own = write(&cursor, &scope);
    assert_eq!(read(&own, &scope).ok(), Some(cursor));
    assert!(read(&own, &[&scope[..], &["more"]].concat()).is_err());
});
