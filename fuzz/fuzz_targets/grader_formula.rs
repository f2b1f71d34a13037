//! Formulas of graders. The body is the suite's own, in `tests/fuzz/grader_formula.rs`.
#![no_main]

#[path = "../../tests/fuzz/grader_formula.rs"]
mod grader_formula;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| grader_formula::body(bytes));
