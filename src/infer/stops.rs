//! Stop sequences in a stream of text. A sequence may begin in one piece and end in another, so text
//! that could still become one is held back until it is decided.

/// Watches for the first of several stop sequences.
pub(super) struct Stops {
    sequences: Vec<String>,
    held: String,
}

/// What may be shown after a piece, and whether the text ends there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) text: String,
    /// The stop sequence that ended the text; it is not part of it.
    pub(super) stopped: Option<String>,
}

impl Stops {
    pub(super) fn new(sequences: &[String]) -> Self {
        // An empty sequence would stop every text before its first letter.
        let sequences = sequences.iter().filter(|sequence| !sequence.is_empty()).cloned().collect();
        Self { sequences, held: String::new() }
    }

    /// Takes the next piece of text.
    pub(super) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let found = self.sequences.iter().filter_map(|sequence| Some((self.held.find(sequence.as_str())?, sequence)));
        // The earliest counts; of two at one place the longer, which says more about why.
        let first = found.min_by_key(|(at, sequence)| (*at, std::cmp::Reverse(sequence.len())));
        if let Some((at, sequence)) = first {
            let stopped = Some(sequence.clone());
            let text = self.held[..at].to_string();
            self.held.clear();
            return Passed { text, stopped };
        }
        let undecided = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| self.sequences.iter().any(|sequence| sequence.starts_with(&self.held[*at..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(undecided);
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// The text ended otherwise: what was held back belongs to it.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(sequences: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let sequences: Vec<String> = sequences.iter().map(ToString::to_string).collect();
        let mut stops = Stops::new(&sequences);
        let mut text = String::new();
        for piece in pieces {
            let passed = stops.push(piece);
            text.push_str(&passed.text);
            if passed.stopped.is_some() {
                return (text, passed.stopped);
            }
        }
        text.push_str(&stops.finish());
        (text, None)
    }

    #[test]
    fn a_sequence_is_found_across_pieces_and_is_not_part_of_the_text() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["one E", "N", "O"]), ("one ENO".into(), None));
        assert_eq!(run(&["END"], &["one EN"]), ("one EN".into(), None));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n", "\nc"]), ("a\nb".into(), Some("\n\n".into())));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), Some("aab".into())));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), Some("é!".into())));
        assert_eq!(run(&[""], &["text"]), ("text".into(), None));
    }

    #[test]
    fn the_earliest_sequence_wins() {
        assert_eq!(run(&["two", "one"], &["zero one two"]), ("zero ".into(), Some("one".into())));
        assert_eq!(run(&["ab", "abc"], &["xabc"]), ("x".into(), Some("abc".into())));
    }

    proptest! {
        #[test]
        fn however_the_text_is_cut_the_answer_is_that_of_the_whole(
            pieces in proptest::collection::vec("[ab]{0,3}", 0..12),
            sequence in "[ab]{1,4}",
        ) {
            let whole = pieces.concat();
            let expected = match whole.find(&sequence) {
                Some(at) => (whole[..at].to_string(), Some(sequence.clone())),
                None => (whole.clone(), None),
            };
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&[&sequence], &pieces), expected);
        }
    }
}
