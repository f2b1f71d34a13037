//! `config.json` of models that callers bring. The body is the suite's own, in `tests/fuzz/config.rs`.
#![no_main]

#[path = "../../tests/fuzz/config.rs"]
mod config;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| config::body(bytes));
