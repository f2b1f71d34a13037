//! A data set as tokens on disk. Three flat files (tokens, what is learned, where each record begins)
//! are mapped into memory and what was read of them is given back after every micro-batch, so ten million records
//! cost no more memory than ten; and a manifest with their digests is written last: a corpus opens only when it is
//! whole.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encode::Encoded;
use super::records::{Format, Objective};
use crate::durable;
use crate::error::{Error, Result};

const MANIFEST: &str = "manifest.json";
/// Tokens as u32, learn marks as one byte each, and the index; all little-endian.
const FILES: [&str; 3] = ["tokens.bin", "learn.bin", "index.bin"];
/// One index entry: where the record's tokens begin (u64, in tokens), its line (u64), its file (u32), and
/// how many tokens are learned (u32).
const ENTRY: usize = 24;

/// What a corpus holds and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Digest over the data, the tokenizer and the options: equal keys mean equal corpora.
    pub key: String,
    /// What the data is for.
    pub objective: Objective,
    /// The format of its records.
    pub format: Format,
    /// The files it was read from, in order.
    pub sources: Vec<SourceFacts>,
    /// Sequences; with continued pre-training a long document gives several.
    pub records: u64,
    /// Tokens in all sequences.
    pub tokens: u64,
    /// Tokens that are learned.
    pub learned_tokens: u64,
    /// Tokens of the longest sequence.
    pub longest: u64,
    /// Half of the sequences have at most this many tokens; nine in ten; ninety-nine in a hundred.
    pub length_quantiles: [u64; 3],
    /// SHA-256 of the three files.
    files: [String; 3],
}

/// One data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceFacts {
    /// As the caller named it.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Lines with a record.
    pub records: u64,
    /// Lines without one, passed over.
    pub blank_lines: u64,
}

/// An open corpus.
#[derive(Debug)]
pub struct Corpus {
    folder: PathBuf,
    manifest: Manifest,
    tokens: Mmap,
    learn: Mmap,
    index: Mmap,
}

impl Corpus {
    /// Opens the corpus in `folder` when it is whole; the digests of its files are checked.
    pub fn open(folder: &Path) -> Result<Self> {
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(folder.join(MANIFEST))?)?;
        for (name, expected) in FILES.iter().zip(&manifest.files) {
            if sha256_of(&folder.join(name))? != *expected {
                return Err(Error::internal(anyhow::anyhow!(
                    "{name} of the corpus in {} is not whole",
                    folder.display()
                )));
            }
        }
        let corpus = Self {
            tokens: map(&folder.join(FILES[0]))?,
            learn: map(&folder.join(FILES[1]))?,
            index: map(&folder.join(FILES[2]))?,
            folder: folder.to_owned(),
            manifest,
        };
        let manifest = &corpus.manifest;
        let sizes = [corpus.tokens.len(), corpus.learn.len(), corpus.index.len()];
        let expected = [manifest.tokens * 4, manifest.tokens, manifest.records * ENTRY as u64];
        if sizes.map(|size| size as u64) != expected {
            return Err(Error::internal(anyhow::anyhow!(
                "the corpus in {} disagrees with its manifest",
                folder.display()
            )));
        }
        Ok(corpus)
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.index.len() / ENTRY
    }

    /// Never: a corpus without a record is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens sequence `i` has.
    pub fn length(&self, i: usize) -> usize {
        let (start, end) = self.bounds(i);
        end - start
    }

    /// How many tokens of sequence `i` are learned.
    pub fn learned(&self, i: usize) -> usize {
        u32::from_le_bytes(self.field(i, 20)) as usize
    }

    /// How many sequences are dealt out together: the two answers of a preference, else one.
    pub fn unit(&self) -> usize {
        if self.manifest.format == Format::Preference { 2 } else { 1 }
    }

    /// How many units there are: what a batch counts.
    pub fn units(&self) -> usize {
        self.len() / self.unit()
    }

    /// The sequences of unit `i`, which is below [`Corpus::units`].
    pub fn unit_records(&self, i: usize) -> std::ops::Range<usize> {
        i * self.unit()..(i + 1) * self.unit()
    }

    /// How many tokens unit `i` has.
    pub fn unit_length(&self, i: usize) -> usize {
        self.unit_records(i).map(|record| self.length(record)).sum()
    }

    /// The file and line that sequence `i` came from, for messages.
    pub fn place(&self, i: usize) -> (&str, u64) {
        let file = u32::from_le_bytes(self.field(i, 16)) as usize;
        let name = self.manifest.sources.get(file).map_or("", |source| source.name.as_str());
        (name, u64::from_le_bytes(self.field(i, 8)))
    }

    /// Sequence `i`, which is below [`Corpus::len`].
    pub fn record(&self, i: usize) -> Encoded {
        let (start, end) = self.bounds(i);
        let (tokens, _) = self.tokens[start * 4..end * 4].as_chunks::<4>();
        Encoded {
            tokens: tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
            learn: self.learn[start..end].iter().map(|learn| *learn != 0).collect(),
        }
    }

    /// Gives the memory back that what was read so far takes. The pages stay in the system's cache as long as it has
    /// room, but are no longer this process's own: the system maps sixteen for each that is touched, so a shuffled
    /// epoch would hold the whole corpus resident.
    pub(crate) fn release(&self) {
        for map in [&self.tokens, &self.learn, &self.index] {
            release(map);
        }
    }

    fn bounds(&self, i: usize) -> (usize, usize) {
        let start = |i| u64::from_le_bytes(self.field(i, 0)) as usize;
        let end = if i + 1 < self.len() { start(i + 1) } else { self.learn.len() };
        (start(i), end)
    }

    fn field<const N: usize>(&self, i: usize, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.index[i * ENTRY + at..][..N]);
        bytes
    }
}

#[expect(unsafe_code, reason = "a map is as sound as the file is still; nobody but this attempt writes in its folder")]
fn map(path: &Path) -> Result<Mmap> {
    Ok(unsafe { Mmap::map(&File::open(path)?)? })
}

#[expect(unsafe_code, reason = "the map is of a file and never written: pages dropped here are read again from it")]
fn release(map: &Mmap) {
    // What the system cannot do here costs memory, and no more.
    let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    Ok(durable::digest(path)?.sha256)
}

/// Writes a corpus.
pub(crate) struct Writer {
    folder: PathBuf,
    files: [(durable::Writer, Sha256); 3],
    /// How many sequences have each length: bounded by the model's length.
    lengths: Vec<u64>,
    records: u64,
    tokens: u64,
    learned: u64,
}

impl Writer {
    /// Begins in `folder`; an older corpus there is gone from now on.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        match std::fs::remove_file(folder.join(MANIFEST)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let create = |name| -> Result<_> { Ok((durable::Writer::create(&folder.join(name))?, Sha256::new())) };
        let files = [create(FILES[0])?, create(FILES[1])?, create(FILES[2])?];
        Ok(Self { folder: folder.to_owned(), files, lengths: Vec::new(), records: 0, tokens: 0, learned: 0 })
    }

    /// Appends one sequence of `file` (index into the sources), read from `line`.
    pub(crate) fn push(&mut self, tokens: &[u32], learn: &[bool], file: u32, line: u64) -> Result<()> {
        let learned = learn.iter().filter(|learn| **learn).count();
        let mut entry = Vec::with_capacity(ENTRY);
        entry.extend(self.tokens.to_le_bytes());
        entry.extend(line.to_le_bytes());
        entry.extend(file.to_le_bytes());
        entry.extend(u32::try_from(learned).map_err(anyhow::Error::from)?.to_le_bytes());
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let marks: Vec<u8> = learn.iter().map(|learn| u8::from(*learn)).collect();
        for ((file, digest), bytes) in self.files.iter_mut().zip([bytes, marks, entry]) {
            digest.update(&bytes);
            file.write_all(&bytes)?;
        }
        if self.lengths.len() <= tokens.len() {
            self.lengths.resize(tokens.len() + 1, 0);
        }
        self.lengths[tokens.len()] += 1;
        self.records += 1;
        self.tokens += tokens.len() as u64;
        self.learned += learned as u64;
        Ok(())
    }

    /// Makes it whole: files first, the manifest last.
    pub(crate) fn finish(
        self,
        key: String,
        objective: Objective,
        format: Format,
        sources: Vec<SourceFacts>,
    ) -> Result<Corpus> {
        let length_quantiles = [50, 90, 99].map(|percent| quantile(&self.lengths, self.records, percent));
        let mut digests: [String; 3] = Default::default();
        for ((file, digest), place) in self.files.into_iter().zip(&mut digests) {
            file.finish()?;
            *place = hex::encode(digest.finalize());
        }
        let manifest = Manifest {
            key,
            objective,
            format,
            sources,
            records: self.records,
            tokens: self.tokens,
            learned_tokens: self.learned,
            longest: self.lengths.len().saturating_sub(1) as u64,
            length_quantiles,
            files: digests,
        };
        durable::replace(&self.folder.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)?;
        Corpus::open(&self.folder)
    }
}

/// The least length that at least `percent` of all sequences do not exceed.
fn quantile(lengths: &[u64], records: u64, percent: u64) -> u64 {
    let mut seen = 0;
    for (length, count) in (0_u64..).zip(lengths) {
        seen += count;
        if seen * 100 >= records * percent {
            return length;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path) -> Corpus {
        let mut writer = Writer::create(folder).unwrap();
        writer.push(&[1, 2, 3], &[false, true, true], 0, 1).unwrap();
        writer.push(&[9], &[false], 0, 4).unwrap();
        writer.push(&[u32::MAX, 0], &[false, true], 1, 2).unwrap();
        let source = |name: &str| SourceFacts { name: name.into(), sha256: "00".into(), records: 1, blank_lines: 0 };
        writer.finish("key".into(), Objective::FineTuning, Format::Completion, vec![source("a"), source("b")]).unwrap()
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = written(folder.path());
        assert_eq!(corpus.len(), 3);
        assert_eq!(corpus.record(0), Encoded { tokens: vec![1, 2, 3], learn: vec![false, true, true] });
        assert_eq!(corpus.record(2), Encoded { tokens: vec![u32::MAX, 0], learn: vec![false, true] });
        assert_eq!((corpus.length(1), corpus.learned(0), corpus.place(2)), (1, 2, ("b", 2)));
        let manifest = corpus.manifest();
        assert_eq!((manifest.tokens, manifest.learned_tokens, manifest.longest), (6, 3, 3));
        assert_eq!(manifest.length_quantiles, [2, 3, 3]);
    }

    #[test]
    fn a_corpus_that_is_not_whole_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        drop(written(folder.path()));
        assert!(Corpus::open(folder.path()).is_ok());
        for name in FILES {
            let path = folder.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            let mut changed = whole.clone();
            changed[1] ^= 4;
            std::fs::write(&path, changed).unwrap();
            assert!(Corpus::open(folder.path()).is_err(), "{name} changed");
            std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            assert!(Corpus::open(folder.path()).is_err(), "{name} cut");
            std::fs::write(&path, whole).unwrap();
        }
        drop(Writer::create(folder.path()).unwrap());
        assert!(Corpus::open(folder.path()).is_err(), "begun anew");
    }
}
