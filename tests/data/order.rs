//! Batches: every record once an epoch, the same seed the same order, and a resumed run the same run.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tunesmith::data::{
    Batch, BatchSettings, Batches, Corpus, Cursor, Encoder, MicroBatch, Objective, Options, in_order,
};

use super::preparing::{FINE_TUNING, ready, run};
use super::tokens::plain;

/// A corpus whose record i has `lengths[i]` letters between its ends.
fn corpus(folder: &std::path::Path, lengths: &[usize]) -> Corpus {
    let file: String =
        lengths.iter().map(|n| format!("{{\"prompt\": \"q\", \"completion\": \"{}\"}}\n", "x".repeat(*n))).collect();
    ready(run(folder, &[("f", file.as_bytes())], &plain(), &FINE_TUNING))
}

fn epoch(batches: &mut Batches<'_>) -> Vec<Batch> {
    let mut all = Vec::new();
    loop {
        all.push(batches.next_batch());
        if all.last().unwrap().ends_epoch {
            return all;
        }
    }
}

fn records(batch: &Batch) -> Vec<usize> {
    batch.micro.iter().flat_map(|micro| micro.records.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_record_comes_once_an_epoch_and_fits_its_budget(
        lengths in proptest::collection::vec(1_usize..30, 1..40),
        seed: u64, batch_size in 1_usize..9, token_budget in 1_usize..80,
        row_tokens in proptest::option::of(1_usize..64), parts in 1_usize..6, resume_at in 0_usize..60,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(folder.path(), &lengths);
        let settings = BatchSettings { seed, batch_size, token_budget, parts, row_tokens };
        let mut batches = Batches::new(&corpus, settings, Cursor::default());
        let first = epoch(&mut batches);
        let second = epoch(&mut batches);
        prop_assert_eq!((first.len() + second.len()) as u64, batches.steps(2));

        for (number, epoch) in [&first, &second].into_iter().enumerate() {
            let seen: Vec<usize> = epoch.iter().flat_map(records).collect();
            prop_assert_eq!(seen.len(), corpus.len());
            prop_assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), corpus.len());
            for (i, batch) in epoch.iter().enumerate() {
                prop_assert_eq!(batch.epoch, number as u64);
                prop_assert_eq!(batch.ends_epoch, i + 1 == epoch.len());
                if row_tokens.is_none() && !batch.ends_epoch {
                    prop_assert_eq!(records(batch).len(), batch_size);
                }
                for micro in &batch.micro {
                    prop_assert!(micro.tokens.len() <= token_budget || micro.records.len() == 1);
                    prop_assert_eq!(micro.lengths.iter().sum::<usize>(), micro.tokens.len());
                    prop_assert_eq!(micro.labels.len(), micro.tokens.len());
                }
                prop_assert_eq!(batch.labelled, records(batch).iter().map(|i| corpus.learned(*i)).sum::<usize>());
            }
        }

        // Resumed after any batch, the rest is the same; begun anew, all is the same.
        let all: Vec<Batch> = first.into_iter().chain(second).collect();
        let at = resume_at % all.len();
        let mut again = Batches::new(&corpus, settings, Cursor::default());
        for batch in &all[..at] {
            prop_assert_eq!(&again.next_batch(), batch);
        }
        let saved: Cursor = serde_json::from_str(&serde_json::to_string(&again.cursor()).unwrap()).unwrap();
        let mut resumed = Batches::new(&corpus, settings, saved);
        for batch in &all[at..] {
            prop_assert_eq!(&resumed.next_batch(), batch);
        }
    }
}

#[test]
fn the_answers_of_a_preference_are_dealt_together_however_small_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let line = |n: usize| {
        let (chosen, rejected) = ("x".repeat(1 + n % 5), "y".repeat(1 + n % 7));
        format!("{{\"prompt\": \"q\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}\n")
    };
    let file: String = (0..23).map(line).collect();
    let options = Options { objective: Objective::Preferences, ..FINE_TUNING };
    let corpus = ready(run(folder.path(), &[("f", file.as_bytes())], &plain(), &options));
    assert_eq!((corpus.len(), corpus.units(), corpus.place(45).1), (46, 23, 23));
    let whole = |records: &[usize]| records.chunks(2).all(|pair| pair[0] % 2 == 0 && pair[1] == pair[0] + 1);
    for (token_budget, parts) in [(1, 1), (30, 1), (400, 4)] {
        let settings = BatchSettings { seed: 2, batch_size: 5, token_budget, parts, row_tokens: None };
        let mut batches = Batches::new(&corpus, settings, Cursor::default());
        assert_eq!(batches.steps(1), 5);
        let epoch = epoch(&mut batches);
        assert_eq!(records(&epoch[0]).len(), 10, "a batch counts pairs");
        assert_eq!(epoch.iter().flat_map(records).collect::<BTreeSet<_>>().len(), 46);
        assert!(epoch.iter().flat_map(|batch| &batch.micro).all(|micro| whole(&micro.records)));
        assert!(in_order(&corpus, token_budget).all(|micro| whole(&micro.records)));
    }
}

#[test]
fn a_label_is_the_next_token_of_the_same_record() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), &[1, 2]);
    let micro: Vec<MicroBatch> = in_order(&corpus, 100).collect();
    let [micro] = &micro[..] else { panic!("one micro-batch") };
    let (q, x, end) = (micro.tokens[0], micro.tokens[1], micro.tokens[2]);
    assert_eq!(micro.tokens, [q, x, end, q, x, x, end]);
    assert_eq!(micro.labels, [Some(x), Some(end), None, Some(x), Some(x), Some(end), None]);
    assert_eq!((&micro.lengths[..], &micro.records[..], micro.labelled()), (&[3, 4][..], &[0, 1][..], 5));
}

#[test]
fn validation_sees_every_record_once_in_the_order_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), &[3, 20, 1, 1, 9]);
    let parts: Vec<Vec<usize>> = in_order(&corpus, 12).map(|micro| micro.records).collect();
    assert_eq!(parts, [vec![0], vec![1], vec![2, 3], vec![4]]);
}

#[test]
fn rows_of_continued_pre_training_are_filled_with_whole_documents() {
    let folder = tempfile::tempdir().unwrap();
    let file: String = (0..40).map(|i| format!("{{\"input\": \"{}\"}}\n", "x".repeat(1 + i % 7))).collect();
    let options = Options { objective: Objective::ContinuedPreTraining, max_tokens: 16, min_records: 1 };
    let encoder: Encoder = plain();
    let corpus = ready(run(folder.path(), &[("f", file.as_bytes())], &encoder, &options));
    let settings = BatchSettings { seed: 3, batch_size: 1, token_budget: 16, parts: 1, row_tokens: Some(16) };
    let rows = epoch(&mut Batches::new(&corpus, settings, Cursor::default()));
    for pair in rows.windows(2) {
        let [row] = &pair[0].micro[..] else { panic!("a row is one micro-batch") };
        let next = pair[1].micro[0].lengths[0];
        assert!(row.tokens.len() <= 16 && row.tokens.len() + next > 16, "a row is full");
    }
    assert_eq!(rows.iter().map(|row| row.labelled as u64).sum::<u64>(), corpus.manifest().learned_tokens);
}
