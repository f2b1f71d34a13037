//! Lines of invocation logs and prompts. The body is the suite's own, in `tests/fuzz/invocation_log_line.rs`.
#![no_main]

#[path = "../../tests/fuzz/invocation_log_line.rs"]
mod invocation_log_line;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| invocation_log_line::body(bytes));
