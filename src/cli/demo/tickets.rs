//! The demo's data: support tickets and the JSON that routes them, embedded so that the demo needs no
//! files. `assets/demo` says how they were made.

use serde::Deserialize;

use crate::error::{Error, Result};

/// Training records.
pub(super) const TRAIN: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/train.jsonl"));

/// Validation records.
pub(super) const VALIDATION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/validation.jsonl"));

const HELD_OUT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/held_out.jsonl"));

/// One ticket that training never saw, and the answer that it should get.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    /// The instruction that goes with every ticket.
    pub(super) system: String,
    /// What the customer wrote.
    pub(super) text: String,
    /// The one right answer, byte for byte.
    pub(super) expected: String,
}

#[derive(Deserialize)]
struct Record {
    system: Vec<Block>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    content: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    text: String,
}

/// The held-out tickets.
///
/// # Errors
/// When the embedded file is not what `assets/demo/tickets.py` writes.
pub(super) fn held_out() -> Result<Vec<Ticket>> {
    HELD_OUT.lines().map(ticket).collect()
}

fn ticket(line: &str) -> Result<Ticket> {
    let Record { system, messages } = serde_json::from_str(line)?;
    let mut texts = messages.into_iter().flat_map(|message| message.content).map(|block| block.text);
    match (system.into_iter().next(), texts.next(), texts.next()) {
        (Some(system), Some(text), Some(expected)) => Ok(Ticket { system: system.text, text, expected }),
        _ => Err(Error::internal(anyhow::anyhow!("a held-out record without system, ticket and answer"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn held_out_tickets_are_many_and_none_of_them_was_trained_on() {
        let held_out = held_out().unwrap();
        assert!(held_out.len() >= 100);
        let trained: HashSet<String> =
            TRAIN.lines().chain(VALIDATION.lines()).map(|line| ticket(line).unwrap().text).collect();
        assert!(trained.len() >= 500, "and training has enough that differ");
        for ticket in &held_out {
            assert!(!trained.contains(&ticket.text), "{}", ticket.text);
        }
    }

    #[test]
    fn every_expected_answer_is_json_with_the_four_facts() {
        for ticket in held_out().unwrap() {
            let answer: serde_json::Value = serde_json::from_str(&ticket.expected).unwrap();
            let keys: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["intent", "product", "order", "urgency"]);
        }
    }
}
