//! Chat templates: whatever one holds, compiling and trying it end soon, with a template or a refusal that says why.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tunesmith::models::ChatTemplate;

/// Far above what the fuel of a short question buys.
const LIMIT: Duration = Duration::from_secs(30);

/// Takes any bytes.
pub(crate) fn body(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let begun = Instant::now();
    if let Err(error) = ChatTemplate::try_out(source, Some("<s>"), Some("</s>")) {
        assert!(!error.message().is_empty());
    }
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
}

/// The templates that the golden tests render.
#[cfg(test)]
pub(crate) fn seeds() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "jinja")).collect()
}
