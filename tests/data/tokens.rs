//! A tokenizer small enough to read: single bytes, a few words that merge, and special tokens.

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};
use tunesmith::data::Encoder;

/// ChatML in one line per turn.
pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Byte-level BPE in which "hello" and " hello" are one token each, and everything else is bytes.
pub(crate) fn tokenizer() -> Tokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut words: Vec<String> = alphabet.into_iter().map(String::from).collect();
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello")];
    words.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocabulary: [(String, u32); 261] = words.into_iter().zip(0..).collect::<Vec<_>>().try_into().unwrap();
    let merges = merges.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).build().unwrap();
    let mut tokenizer = Tokenizer::new(model);
    // Offsets are trimmed, as in the tokenizers of Llama 3: the hard case.
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_post_processor(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].map(|text| AddedToken::from(text, true));
    tokenizer.add_special_tokens(special).unwrap();
    tokenizer
}

/// With the chat template.
pub(crate) fn chat() -> Encoder {
    Encoder::new(tokenizer(), None, Some("</s>"), Some(TEMPLATE)).unwrap()
}

/// Without one.
pub(crate) fn plain() -> Encoder {
    Encoder::new(tokenizer(), None, Some("</s>"), None).unwrap()
}

/// The tokens as text, learned ones in brackets: `ab[cd]`.
pub(crate) fn show(sequences: &[tunesmith::data::Encoded]) -> String {
    sequences.iter().map(one).collect::<Vec<_>>().join(" | ")
}

fn one(encoded: &tunesmith::data::Encoded) -> String {
    let tokenizer = tokenizer();
    let mut text = String::new();
    let mut run = Vec::new();
    let mut learned = false;
    for (token, learn) in encoded.tokens.iter().zip(&encoded.learn).map(|(t, l)| (Some(*t), *l)).chain([(None, false)])
    {
        if learn != learned || token.is_none() {
            let decoded = tokenizer.decode(&run, false).unwrap();
            text += &if learned { format!("[{decoded}]") } else { decoded };
            run.clear();
            learned = learn;
        }
        run.extend(token);
    }
    text
}
