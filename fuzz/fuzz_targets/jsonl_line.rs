//! Data sets line by line, for each objective: every line comes once and in order, whatever the bytes are, and is
//! read as a record or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunesmith::data::jsonl::{Content, Lines};
use tunesmith::data::{Objective, Record};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut lines) = Lines::with_cap(bytes, 1 << 10) else { return };
    let mut number = 0;
    while let Ok(Some(line)) = lines.next_line() {
        number += 1;
        assert_eq!(line.number, number);
        if let Content::Text(text) = line.content {
            assert!(text.len() <= 1 << 10 && !text.contains('\n'));
            for objective in [Objective::FineTuning, Objective::ContinuedPreTraining] {
                drop(Record::parse(&text, objective));
            }
        }
    }
    assert!(number as usize <= bytes.len() + 1);
});
