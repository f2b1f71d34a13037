//! Safetensors files that callers bring. The body is the suite's own, in `tests/fuzz/safetensors.rs`.
#![no_main]

#[path = "../../tests/fuzz/safetensors.rs"]
mod safetensors;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| safetensors::body(bytes));
