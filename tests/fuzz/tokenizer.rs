//! `tokenizer.json`: it is read, and then takes and gives texts, or it is refused.

use tunesmith::models::Tokenizer;

pub(crate) fn body(bytes: &[u8]) {
    let dir = std::env::temp_dir().join(format!("tunesmith-fuzz-tokenizer-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the folder for temporary files can be written");
    std::fs::write(dir.join("tokenizer.json"), bytes).expect("the folder for temporary files can be written");
    match Tokenizer::read(&dir) {
        Ok(tokenizer) => {
            if let Ok(ids) = tokenizer.encode("A text, with numbers 12345 and naïve 😀.", true) {
                drop(tokenizer.decode(&ids, true));
            }
        }
        Err(error) => assert!(error.message().len() < 4096),
    }
    drop(std::fs::remove_dir_all(&dir));
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<std::path::PathBuf> {
    vec![super::fixture("models/llama/tokenizer.json")]
}
