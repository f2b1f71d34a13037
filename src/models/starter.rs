//! The starter model travels inside the binary, so that the first command needs no download. It is
//! unpacked into a Hugging Face directory like any other base and loaded from there like any other.

use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::durable;
use crate::error::{Error, Result};

/// The starter's Bedrock id, and the name of its directory.
pub const ID: &str = "tunesmith.starter-v1:0";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/starter/", $name)))),*]
    };
}

/// Name and content of every file of the directory.
const FILES: &[(&str, &[u8])] = files![
    "README.md",
    "card.toml",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Makes `<models>/tunesmith.starter-v1:0` hold exactly the embedded files and returns its path.
///
/// Every file that is missing or differs is written beside its place, synced and renamed over it, so a
/// reader sees whole files only, several processes may unpack at once, and a crash between two files is
/// mended by the next start.
///
/// # Errors
/// When the directory cannot be made or written; the message names it.
pub fn unpack(models: &Path) -> Result<PathBuf> {
    let directory = models.join(ID);
    let failed = |cause: std::io::Error| {
        Error::internal(cause).at(format!("unpacking the starter model into {}", directory.display()))
    };
    std::fs::create_dir_all(&directory).map_err(failed)?;
    for (name, content) in FILES {
        let place = directory.join(name);
        if std::fs::read(&place).is_ok_and(|found| found == *content) {
            continue;
        }
        let beside = directory.join(format!(".{name}.{}", Clock::system().id()));
        durable::write(&beside, content).and_then(|()| durable::rename(&beside, &place)).map_err(|cause| {
            // What was half written is of no use to anyone; the first error is the one to tell.
            let _ = std::fs::remove_file(&beside);
            failed(cause)
        })?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_twice_leaves_whole_files_and_touches_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let directory = unpack(folder.path()).unwrap();
        let made = |name: &str| std::fs::metadata(directory.join(name)).unwrap().modified().unwrap();
        let before: Vec<_> = FILES.iter().map(|(name, _)| made(name)).collect();
        assert_eq!(unpack(folder.path()).unwrap(), directory);
        let after: Vec<_> = FILES.iter().map(|(name, _)| made(name)).collect();
        assert_eq!(before, after);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), FILES.len(), "nothing is left beside the files");
    }

    #[test]
    fn a_damaged_file_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        let directory = unpack(folder.path()).unwrap();
        std::fs::write(directory.join("model.safetensors"), b"half").unwrap();
        std::fs::remove_file(directory.join("tokenizer.json")).unwrap();
        unpack(folder.path()).unwrap();
        for (name, content) in FILES {
            assert_eq!(std::fs::read(directory.join(name)).unwrap(), *content, "{name}");
        }
    }

    #[test]
    fn the_whole_starter_takes_at_most_eight_megabytes() {
        let size: usize = FILES.iter().map(|(_, content)| content.len()).sum();
        assert!(size <= 8 << 20, "{size} bytes");
    }
}
