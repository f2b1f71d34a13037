//! Whole files: everything is checked before anything is learned.

use std::path::Path;

use proptest::prelude::*;
use tunesmith::data::{Corpus, Encoder, Objective, Options, Prepared, Source, prepare};
use tunesmith::error::Error;

use super::tokens::{chat, plain, show};

pub(crate) const FINE_TUNING: Options = Options { objective: Objective::FineTuning, max_tokens: 64, min_records: 1 };
const PRE_TRAINING: Options = Options { objective: Objective::ContinuedPreTraining, max_tokens: 8, min_records: 1 };

pub(crate) fn run(folder: &Path, files: &[(&str, &[u8])], encoder: &Encoder, options: &Options) -> Prepared {
    let sources: Vec<_> = files
        .iter()
        .map(|(name, bytes)| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).unwrap();
            Source { path, name: format!("s3://bucket/data/{name}") }
        })
        .collect();
    prepare(&sources, encoder, options, &folder.join("corpus"), &mut |_| Ok(())).unwrap()
}

pub(crate) fn ready(prepared: Prepared) -> Corpus {
    match prepared {
        Prepared::Ready(corpus) => corpus,
        Prepared::Refused(report) => panic!("refused: {}", report.message),
    }
}

fn refused(bytes: &[u8], options: &Options) -> String {
    let folder = tempfile::tempdir().unwrap();
    match run(folder.path(), &[("train.jsonl", bytes)], &plain(), options) {
        Prepared::Refused(report) => {
            assert_eq!(std::fs::read_to_string(report.path).unwrap().lines().count() as u64, report.bad);
            report.message
        }
        Prepared::Ready(corpus) => panic!("taken: {:?}", corpus.manifest()),
    }
}

const PARSE: &str =
    "Unable to parse Amazon S3 file: s3://bucket/data/train.jsonl. Data files must conform to JSONL format.\n";

#[test]
fn a_good_file_becomes_a_corpus_that_knows_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file =
        b"\xEF\xBB\xBF{\"prompt\": \"a\", \"completion\": \"b\"}\r\n\r\n{\"prompt\": \"cc\", \"completion\": \"dd\"}";
    let corpus = ready(run(folder.path(), &[("one.jsonl", file), ("two.jsonl", &file[3..])], &plain(), &FINE_TUNING));
    let texts: Vec<_> = (0..corpus.len()).map(|i| show(&[corpus.record(i)])).collect();
    assert_eq!(texts, ["a[b</s>]", "cc[dd</s>]", "a[b</s>]", "cc[dd</s>]"]);
    assert_eq!(corpus.place(3), ("s3://bucket/data/two.jsonl", 3));
    let manifest = corpus.manifest();
    assert_eq!((manifest.records, manifest.tokens, manifest.learned_tokens, manifest.longest), (4, 16, 10, 5));
    assert_eq!((manifest.sources[0].records, manifest.sources[0].blank_lines), (2, 1));
    assert_eq!(manifest.sources[1].sha256.len(), 64);
}

#[test]
fn every_bad_line_is_reported_with_its_place_in_the_order_of_the_file() {
    let file = b"{\"prompt\": \"a\", \"completion\": \"b\"}\nnope\n{\"prompt\": \"a\"}\n{\"prompt\": \"caf\xE9\"}\n{\"messages\": 1}\n";
    assert_eq!(
        refused(file, &FINE_TUNING),
        format!(
            "{PARSE}train.jsonl:2:2: not valid JSON: expected ident\n\
             train.jsonl:3:1: the key \"completion\" is missing; a record here is {{\"prompt\": \"...\", \"completion\": \"...\"}}\n\
             train.jsonl:4:16: byte 16 of the line (0xE9) is not valid UTF-8; save the file as UTF-8\n\
             train.jsonl:5:14: messages: expected an array, found a number"
        )
    );
}

#[test]
fn empty_files_say_what_a_record_looks_like() {
    let example = "give one record per line, such as {\"prompt\": \"...\", \"completion\": \"...\"}";
    assert_eq!(refused(b"", &FINE_TUNING), format!("{PARSE}train.jsonl: the file is empty; {example}"));
    assert_eq!(
        refused(b"\n \n", &FINE_TUNING),
        format!("{PARSE}train.jsonl: the file has only blank lines; {example}")
    );
    let example = "give one record per line, such as {\"input\": \"...\"}";
    assert_eq!(refused(b"", &PRE_TRAINING), format!("{PARSE}train.jsonl: the file is empty; {example}"));
}

#[test]
fn files_that_are_not_json_lines_say_what_they_are() {
    assert_eq!(
        refused(b"[\n{\"prompt\": \"a\", \"completion\": \"b\"}\n]", &FINE_TUNING),
        format!(
            "{PARSE}train.jsonl:1:1: the file holds a JSON array; write one JSON object per line, without brackets around them or commas between them"
        )
    );
    assert_eq!(
        refused(b"\x1F\x8B\x08\0\0\0", &FINE_TUNING),
        format!("{PARSE}train.jsonl:1: the file is compressed with gzip; unpack it and upload the plain .jsonl file")
    );
}

#[test]
fn a_record_over_the_models_length_is_refused_with_both_numbers() {
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"b\"}}\n", "x".repeat(63));
    assert_eq!(
        refused(long.as_bytes(), &FINE_TUNING),
        format!(
            "Input size exceeded in file s3://bucket/data/train.jsonl for record starting with {}\n\
             train.jsonl:1: Maximum input token count 65 exceeds limit of 64",
            &long[..60]
        )
    );
    let fits = format!("{{\"prompt\": \"{}\", \"completion\": \"b\"}}\n", "x".repeat(62));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(ready(run(folder.path(), &[("f", fits.as_bytes())], &plain(), &FINE_TUNING)).length(0), 64);
}

#[test]
fn mixed_records_and_too_few_records_are_refused() {
    let mixed = "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    let folder = tempfile::tempdir().unwrap();
    let Prepared::Refused(report) = run(folder.path(), &[("train.jsonl", mixed.as_bytes())], &chat(), &FINE_TUNING)
    else {
        panic!("taken")
    };
    assert!(
        report
            .message
            .starts_with("Invalid records in Amazon S3 file: s3://bucket/data/train.jsonl.\ntrain.jsonl:2:1: ")
    );
    assert!(report.message.contains("but train.jsonl:1 is {\"prompt\""), "{}", report.message);
    assert_eq!(
        refused(b"{\"prompt\": \"a\", \"completion\": \"b\"}\n", &Options { min_records: 32, ..FINE_TUNING }),
        "Invalid records in Amazon S3 file: s3://bucket/data/train.jsonl.\n\
         train.jsonl: the data set has 1 records; this job needs at least 32"
    );
}

#[test]
fn a_second_attempt_takes_the_whole_corpus_and_changed_data_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut read = 0;
    let mut go = |text: &str, options: &Options| {
        std::fs::write(folder.path().join("f"), text).unwrap();
        let sources = [Source { path: folder.path().join("f"), name: "f".into() }];
        read = 0;
        ready(
            prepare(&sources, &plain(), options, &folder.path().join("c"), &mut |_| {
                read += 1;
                Ok(())
            })
            .unwrap(),
        );
        read
    };
    let text = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    assert_eq!(go(text, &FINE_TUNING), 1);
    assert_eq!(go(text, &FINE_TUNING), 0, "nothing was read again");
    assert_eq!(go(&text.replace("\"a\"", "\"c\""), &FINE_TUNING), 1);
    assert_eq!(go(text, &Options { max_tokens: 65, ..FINE_TUNING }), 1);
}

#[test]
fn an_interrupted_preparation_leaves_no_corpus() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
    let sources = [Source { path: folder.path().join("f"), name: "f".into() }];
    let corpus = folder.path().join("c");
    let stop = prepare(&sources, &plain(), &FINE_TUNING, &corpus, &mut |_| Err(Error::validation("stopped")));
    assert_eq!(stop.unwrap_err().message(), "stopped");
    assert!(Corpus::open(&corpus).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_long_document_is_split_and_each_token_is_learned_once(words in "[a-z]{1,60}") {
        let folder = tempfile::tempdir().unwrap();
        let file = format!("{{\"input\": \"{words}\"}}\n");
        let corpus = ready(run(folder.path(), &[("f", file.as_bytes())], &plain(), &PRE_TRAINING));
        let whole = plain().sequences(&tunesmith::data::Record::Text(words)).unwrap().remove(0);
        let mut learned = Vec::new();
        for i in 0..corpus.len() {
            let part = corpus.record(i);
            prop_assert!(part.tokens.len() <= 8 && !part.learn[0]);
            learned.extend(part.tokens.iter().zip(&part.learn).filter(|(_, learn)| **learn).map(|(token, _)| *token));
        }
        prop_assert_eq!(&learned[..], &whole.tokens[1..]);
        prop_assert_eq!(corpus.place(corpus.len() - 1).1, 1);
    }

    #[test]
    fn any_bytes_give_a_corpus_or_a_report(bytes in proptest::collection::vec(
        prop_oneof![Just(b'\n'), Just(b'{'), Just(b'}'), Just(b'"'), any::<u8>()], 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        match run(folder.path(), &[("f", &bytes)], &plain(), &FINE_TUNING) {
            Prepared::Ready(corpus) => prop_assert!(!corpus.is_empty()),
            Prepared::Refused(report) => prop_assert!(report.bad > 0 && report.message.chars().count() <= 2048),
        }
    }
}
