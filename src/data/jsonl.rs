//! Lines of a JSON Lines file, read as a stream: one line is in memory at a time, however large the
//! file, and whatever the bytes are each line is accounted for: as text, as blank, or with what is
//! wrong with it and where.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

/// The longest line that is read, in bytes: far above any record a model could take, far below memory.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// The longest line where a line becomes a tree of values, which takes tens of times its bytes.
pub const MAX_TREE_LINE_BYTES: usize = 8 << 20;

/// Capacity that stays with the line buffer between lines; one huge line does not keep its memory.
const KEPT_BYTES: usize = 1 << 20;

/// What is wrong with a line or a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where in the line, in characters from 1; none when the whole line is meant.
    pub column: Option<usize>,
    /// What is wrong and what to do.
    pub reason: String,
    /// Which of the sentences of the service's contract opens the failure message.
    pub class: Class,
}

/// The kinds of faults that a failure message tells apart in its first sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The line is not JSON, or the file is not JSON Lines.
    Syntax,
    /// The line is JSON, but not a record that this job takes.
    Format,
    /// The record has more tokens than the model takes.
    Length,
}

impl Fault {
    /// Not JSON Lines.
    pub(crate) fn syntax(column: impl Into<Option<usize>>, reason: impl Into<String>) -> Self {
        Self { column: column.into(), reason: reason.into(), class: Class::Syntax }
    }

    /// JSON, but not the record that is expected.
    pub(crate) fn format(column: impl Into<Option<usize>>, reason: impl Into<String>) -> Self {
        Self { column: column.into(), reason: reason.into(), class: Class::Format }
    }
}

/// One line of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1.
    pub number: u64,
    /// What the line holds.
    pub content: Content,
}

/// What a line holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// Text, without its line end.
    Text(String),
    /// Nothing but white space: editors and `cat` leave such lines, nothing is lost by passing over them.
    Blank,
    /// It cannot be read.
    Bad(Fault),
    /// The file as a whole cannot be read as JSON Lines; no further line follows.
    Unreadable(Fault),
}

/// Iterates over the lines of `R`.
pub struct Lines<R> {
    reader: BufReader<Chain<Cursor<Vec<u8>>, R>>,
    line: Vec<u8>,
    number: u64,
    cap: usize,
    /// Set once text was seen: what opens a file is judged on its first text.
    seen_text: bool,
    /// What the first bytes say the file is, when it is not text.
    unreadable: Option<&'static str>,
    done: bool,
}

impl<R: Read> Lines<R> {
    /// Reads `input` from its beginning.
    pub fn new(input: R) -> io::Result<Self> {
        Self::with_cap(input, MAX_LINE_BYTES)
    }

    /// The same with another cap on the length of a line, in bytes.
    pub fn with_cap(mut input: R, cap: usize) -> io::Result<Self> {
        let mut head = Vec::with_capacity(4);
        input.by_ref().take(4).read_to_end(&mut head)?;
        let unreadable = what_it_is(&head);
        if head.starts_with(b"\xEF\xBB\xBF") {
            head.drain(..3);
        }
        let reader = BufReader::with_capacity(256 << 10, Cursor::new(head).chain(input));
        Ok(Self { reader, line: Vec::new(), number: 0, cap, seen_text: false, unreadable, done: false })
    }

    /// The next line, or none at the end of the file.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        if self.done {
            return Ok(None);
        }
        if let Some(reason) = self.unreadable.take() {
            self.done = true;
            return Ok(Some(Line { number: 1, content: Content::Unreadable(Fault::syntax(None, reason)) }));
        }
        self.line.clear();
        self.line.shrink_to(KEPT_BYTES);
        // Room for the cap and one line end of two bytes.
        let limit = self.cap as u64 + 2;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            self.done = true;
            return Ok(None);
        }
        self.number += 1;
        let mut bytes = read;
        let ended = self.line.last() == Some(&b'\n');
        if ended {
            self.line.pop();
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
        }
        let content = if self.line.len() > self.cap {
            if !ended {
                bytes += self.reader.skip_until(b'\n')?;
            }
            Content::Bad(Fault::syntax(
                None,
                format!(
                    "the line takes {bytes} bytes; it may take at most {}. Is there a line break missing \
                     between records?",
                    self.cap
                ),
            ))
        } else {
            self.judge()
        };
        self.done = matches!(content, Content::Unreadable(_));
        Ok(Some(Line { number: self.number, content }))
    }

    /// The input that lines are read from.
    pub(crate) fn get_ref(&self) -> &R {
        self.reader.get_ref().get_ref().1
    }

    /// Gives the input back.
    pub(crate) fn into_inner(self) -> R {
        self.reader.into_inner().into_inner().1
    }

    fn judge(&mut self) -> Content {
        let text = match std::str::from_utf8(&self.line) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                let valid = String::from_utf8_lossy(&self.line[..at]);
                return Content::Bad(Fault::syntax(
                    valid.chars().count() + 1,
                    format!(
                        "byte {} of the line (0x{:02X}) is not valid UTF-8; save the file as UTF-8",
                        at + 1,
                        self.line[at]
                    ),
                ));
            }
        };
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Content::Blank;
        }
        if trimmed.starts_with('\u{FEFF}') {
            return Content::Bad(Fault::syntax(
                1,
                "a byte order mark (U+FEFF) stands before the record; it may only open a file. Files that were joined \
                 keep theirs: remove it",
            ));
        }
        if !self.seen_text && trimmed.starts_with('[') {
            return Content::Unreadable(Fault::syntax(
                1,
                "the file holds a JSON array; write one JSON object per line, without brackets around them or commas \
                 between them",
            ));
        }
        if !self.seen_text && trimmed == "{" {
            return Content::Unreadable(Fault::syntax(
                1,
                "the file spreads a JSON object over several lines; write one JSON object per line",
            ));
        }
        self.seen_text = true;
        Content::Text(text.to_owned())
    }
}

/// Names files that are not text by their first bytes.
fn what_it_is(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x1F, 0x8B, ..] => Some("the file is compressed with gzip; unpack it and upload the plain .jsonl file"),
        [b'P', b'K', 3, 4] => Some("the file is a zip archive; unpack it and upload the plain .jsonl file"),
        [0x28, 0xB5, 0x2F, 0xFD] => {
            Some("the file is compressed with zstd; unpack it and upload the plain .jsonl file")
        }
        [b'P', b'A', b'R', b'1'] => Some("the file is in Parquet format; convert it to JSON Lines (.jsonl)"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("the file is in UTF-16; save it as UTF-8"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8], cap: usize) -> Vec<Line> {
        let mut lines = Lines::with_cap(bytes, cap).unwrap();
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    fn text(number: u64, text: &str) -> Line {
        Line { number, content: Content::Text(text.into()) }
    }

    fn fault(line: &Line) -> &Fault {
        match &line.content {
            Content::Bad(fault) | Content::Unreadable(fault) => fault,
            other => panic!("expected a fault, found {other:?}"),
        }
    }

    #[test]
    fn windows_files_with_bom_crlf_and_no_final_newline_read_like_any_other() {
        let lines = read(b"\xEF\xBB\xBF{\"a\":1}\r\n\r\n{\"b\":2}", 100);
        assert_eq!(lines, [text(1, "{\"a\":1}"), Line { number: 2, content: Content::Blank }, text(3, "{\"b\":2}")]);
    }

    #[test]
    fn a_bom_inside_the_file_is_named() {
        let lines = read("{}\n\u{FEFF}{}\n".as_bytes(), 100);
        assert!(fault(&lines[1]).reason.contains("byte order mark"));
    }

    #[test]
    fn bad_utf8_is_named_with_its_column_and_the_next_line_still_counts() {
        let lines = read(b"{\"\xC3\xA9\":\"caf\xE9\"}\n{}\n", 100);
        assert_eq!(fault(&lines[0]).column, Some(10));
        assert_eq!(fault(&lines[0]).reason, "byte 11 of the line (0xE9) is not valid UTF-8; save the file as UTF-8");
        assert_eq!(lines[1], text(2, "{}"));
    }

    #[test]
    fn a_line_over_the_cap_is_passed_over_and_a_line_at_the_cap_is_read() {
        let lines = read(b"12345\r\n123456\n12345", 5);
        assert_eq!((&lines[0], &lines[2]), (&text(1, "12345"), &text(3, "12345")));
        assert!(fault(&lines[1]).reason.starts_with("the line takes 7 bytes"), "{:?}", lines[1]);
    }

    /// A file of one endless line, made as it is read.
    struct Endless(u64);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(usize::try_from(self.0).unwrap());
            buffer[..n].fill(b'x');
            self.0 -= n as u64;
            Ok(n)
        }
    }

    #[test]
    fn a_line_beyond_sixty_four_megabytes_takes_no_more_memory_than_the_cap() {
        let mut lines = Lines::new(Endless(3 * MAX_LINE_BYTES as u64).chain(&b"\n{}"[..])).unwrap();
        let line = lines.next_line().unwrap().unwrap();
        assert!(fault(&line).reason.starts_with("the line takes 201326593 bytes; it may take at most 67108864."));
        assert!(lines.line.capacity() <= 2 * MAX_LINE_BYTES + KEPT_BYTES);
        assert_eq!(lines.next_line().unwrap().unwrap(), text(2, "{}"));
        assert!(lines.line.capacity() <= KEPT_BYTES);
    }

    #[test]
    fn files_of_another_kind_are_named() {
        for (bytes, word) in [
            (&b"\x1F\x8B\x08\0rest"[..], "gzip"),
            (b"PK\x03\x04", "zip"),
            (b"\xFF\xFE{\0", "UTF-16"),
            (b"PAR1....", "Parquet"),
            (b"\n [\n{}]", "one JSON object per line"),
            (b"{\n\"prompt\": 1}", "one JSON object per line"),
        ] {
            let lines = read(bytes, 100);
            let last = lines.last().unwrap();
            assert!(matches!(last.content, Content::Unreadable(_)));
            assert!(fault(last).reason.contains(word), "{word}: {}", fault(last).reason);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_every_line_is_accounted_for(bytes in proptest::collection::vec(
            prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'{'), Just(b'}'), Just(b' '), any::<u8>()], 0..300),
            cap in 1_usize..40)
        {
            let lines = read(&bytes, cap);
            for (i, line) in lines.iter().enumerate() {
                prop_assert_eq!(line.number, i as u64 + 1);
            }
            let ended = matches!(lines.last(), Some(Line { content: Content::Unreadable(_), .. }));
            let bom = if bytes.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
            let rest = &bytes[bom..];
            let breaks = rest.iter().filter(|byte| **byte == b'\n').count();
            let expected = breaks + usize::from(!rest.is_empty() && rest.last() != Some(&b'\n'));
            prop_assert!(ended || lines.len() == expected, "{} lines, expected {}", lines.len(), expected);
        }
    }
}
