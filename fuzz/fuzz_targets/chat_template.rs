//! Chat templates that strangers write. The body is the suite's own, in `tests/fuzz/chat_template.rs`.
#![no_main]

#[path = "../../tests/fuzz/chat_template.rs"]
mod chat_template;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| chat_template::body(bytes));
