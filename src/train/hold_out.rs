//! Holds part of the training records out for validation when the caller gave no validation data but
//! an `evalPercentage`. Which records is a matter of the seed; windows of one document stay together,
//! because a model that has read the first half of a text knows too much about the second.

use std::path::Path;

use crate::data::Corpus;
use crate::data::corpus::Writer;
use crate::error::{Error, Result};
use crate::rng::Rng;

/// Splits `corpus` into what is trained on and what is held out, written below `folder`.
///
/// # Errors
/// `Validation` when there are too few records to hold one out; otherwise when a file cannot be written.
pub(crate) fn hold_out(corpus: &Corpus, percentage: f64, seed: u64, folder: &Path) -> Result<(Corpus, Corpus)> {
    let mut lines: Vec<u64> = (0..corpus.len()).map(|i| corpus.place(i).1).collect();
    lines.dedup();
    let wanted = ((lines.len() as f64 * percentage / 100.0).round() as usize).max(1);
    if wanted >= lines.len() {
        return Err(Error::validation(format!(
            "evalPercentage {percentage} holds out {wanted} of {} training records: none would be left to train on",
            lines.len()
        )));
    }
    let mut held: Vec<u64> =
        Rng::new(seed, "held out", 0).permutation(lines.len()).into_iter().take(wanted).map(|i| lines[i]).collect();
    held.sort_unstable();

    let part = |name: &str, keep: bool| -> Result<Corpus> {
        let mut writer = Writer::create(&folder.join(name))?;
        for i in 0..corpus.len() {
            let line = corpus.place(i).1;
            if held.binary_search(&line).is_ok() == keep {
                let record = corpus.record(i);
                writer.push(&record.tokens, &record.learn, 0, line)?;
            }
        }
        let manifest = corpus.manifest();
        let key = format!("{} {name} {percentage} {seed}", manifest.key);
        writer.finish(key, manifest.objective, manifest.format, manifest.sources.clone())
    };
    Ok((part("kept", false)?, part("held-out", true)?))
}
