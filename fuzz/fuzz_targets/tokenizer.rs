//! `tokenizer.json` of models that callers bring. The body is the suite's own, in `tests/fuzz/tokenizer.rs`.
#![no_main]

#[path = "../../tests/fuzz/tokenizer.rs"]
mod tokenizer;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tokenizer::body(bytes));
