//! How much two texts are alike, from 0 to 1, by the metrics of OpenAI's `text_similarity` grader that are
//! defined by the texts alone. Each is what the reference library gives: `rapidfuzz` (`fuzz.ratio` / 100), `nltk`
//! (`sentence_bleu`, `sentence_gleu` over words between white space), `rouge_score` (F-measure, no stemmer).

use std::collections::HashMap;
use std::hash::Hash;

/// BLEU and GLEU look at runs of up to so many words.
const LONGEST: usize = 4;

/// 2·LCS / (both lengths), over characters: rapidfuzz's normalised InDel similarity.
pub(super) fn fuzzy_match(input: &str, reference: &str) -> f64 {
    let (input, reference): (Vec<char>, Vec<char>) = (input.chars().collect(), reference.chars().collect());
    let both = input.len() + reference.len();
    if both == 0 { 1.0 } else { 2.0 * common_subsequence(&input, &reference) as f64 / both as f64 }
}

/// Geometric mean of the clipped precisions of runs of 1 to 4 words, times the brevity penalty (Papineni et al.
/// 2002), without smoothing.
pub(super) fn bleu(input: &str, reference: &str) -> f64 {
    let (input, reference): (Vec<&str>, Vec<&str>) =
        (input.split_whitespace().collect(), reference.split_whitespace().collect());
    let mut logs = 0.0;
    for n in 1..=LONGEST {
        let (matched, all) = (overlap(&input, &reference, n), runs(&input, n));
        if matched == 0 {
            return 0.0;
        }
        logs += (matched as f64 / all as f64).ln() / LONGEST as f64;
    }
    let brevity = (1.0 - reference.len() as f64 / input.len() as f64).min(0.0);
    (brevity + logs).exp()
}

/// The smaller of precision and recall over all runs of 1 to 4 words (Wu et al. 2016).
pub(super) fn gleu(input: &str, reference: &str) -> f64 {
    let (input, reference): (Vec<&str>, Vec<&str>) =
        (input.split_whitespace().collect(), reference.split_whitespace().collect());
    let sum = |count: &dyn Fn(usize) -> usize| (1..=LONGEST).map(count).sum::<usize>();
    let matched = sum(&|n| overlap(&input, &reference, n));
    let most = sum(&|n| runs(&input, n)).max(sum(&|n| runs(&reference, n)));
    if most == 0 { 0.0 } else { matched as f64 / most as f64 }
}

/// F-measure over runs of `n` words.
pub(super) fn rouge(input: &str, reference: &str, n: usize) -> f64 {
    let (input, reference) = (words(input), words(reference));
    f_measure(overlap(&input, &reference, n), runs(&input, n), runs(&reference, n))
}

/// F-measure over the longest common subsequence of words.
pub(super) fn rouge_l(input: &str, reference: &str) -> f64 {
    let (input, reference) = (words(input), words(reference));
    f_measure(common_subsequence(&input, &reference), input.len(), reference.len())
}

fn f_measure(matched: usize, input: usize, reference: usize) -> f64 {
    // 2pr / (p + r) with p = matched / input and r = matched / reference.
    if matched == 0 { 0.0 } else { 2.0 * matched as f64 / (input + reference) as f64 }
}

/// Runs of ASCII letters and digits in lower case, as `rouge_score` cuts a text.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let parts = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    parts.filter(|word| !word.is_empty()).map(str::to_string).collect()
}

/// How many runs of `n` words a text has.
fn runs<T>(words: &[T], n: usize) -> usize {
    (words.len() + 1).saturating_sub(n)
}

/// How many runs of `n` words both have, each as often as in the text that has it less often.
fn overlap<T: Eq + Hash>(a: &[T], b: &[T], n: usize) -> usize {
    let mut counts: HashMap<&[T], usize> = HashMap::new();
    for run in a.windows(n) {
        *counts.entry(run).or_default() += 1;
    }
    let mut matched = 0;
    for run in b.windows(n) {
        if let Some(count) = counts.get_mut(run).filter(|count| **count > 0) {
            *count -= 1;
            matched += 1;
        }
    }
    matched
}

/// The length of the longest common subsequence.
fn common_subsequence<T: Eq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
