//! What a reward model says of texts: one number each, higher for better.

use crate::error::{Error, Result};
use crate::kernels::scalar_head;
use crate::models::Decoder;
use crate::tune::Method;

/// Tokens that go through the model at a time.
const TOKENS: usize = 4096;

/// The number that the reward model `method` on `decoder` gives each of `sequences`, which are whole answers with
/// their prompts as tokens ([`Encoder::sequences`](crate::data::Encoder::sequences)).
///
/// # Errors
/// When `method` is no reward model, a sequence is empty or longer than the model's context, or the device fails.
pub fn score(decoder: &Decoder, method: &dyn Method, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
    let Some(weight) = method.score() else {
        return Err(Error::validation(
            "The model is no reward model: tune one with the hyperparameter trainingObjective reward",
        ));
    };
    let longest = decoder.config().max_positions.saturating_sub(method.virtual_tokens());
    if let Some(wrong) = sequences.iter().map(Vec::len).find(|length| *length == 0 || *length > longest) {
        return Err(Error::validation(format!(
            "A text of {wrong} tokens cannot be judged: it must have 1 to {longest}"
        )));
    }
    let mut scores = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |sequence: &&Vec<u32>| {
            tokens += sequence.len();
            tokens <= TOKENS
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = later;
        let lengths: Vec<usize> = now.iter().map(Vec::len).collect();
        let packing = decoder.packing(&lengths, method)?;
        let mut x = decoder.embed(&now.concat(), &packing, method)?.detach();
        for index in 0..decoder.config().layers {
            x = decoder.layer(index, &x, &packing, method)?.detach();
        }
        let last = packing.lengths().iter().scan(0, |end, length| {
            *end += length;
            Some(*end - 1)
        });
        let head = scalar_head(&decoder.finish(&x)?, weight, last.collect())?;
        scores.extend(head.values.iter().map(|value| *value as f32));
    }
    Ok(scores)
}
