//! S3 URIs: what is read is written as it was, and joining never leaves the bucket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunesmith::objects::Uri;

fuzz_target!(|input: (String, String)| {
    let (text, below) = input;
    let Ok(uri) = Uri::parse(&text) else { return };
    assert_eq!(uri.to_string().trim_end_matches('/'), text.trim_end_matches('/'));
    assert_eq!(uri.join(&below).bucket(), uri.bucket());
    assert!(uri.join(&below).key().starts_with(uri.key().trim_end_matches('/')));
    assert_eq!(uri.folder().folder(), uri.folder());
});
