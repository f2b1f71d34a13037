//! `adapter_config.json` of adapters that callers bring. The body is the suite's own, in `tests/fuzz/adapter_config.rs`.
#![no_main]

#[path = "../../tests/fuzz/adapter_config.rs"]
mod adapter_config;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| adapter_config::body(bytes));
