//! The teacher's answers as they are kept in the output bucket: an attempt writes them under its own folder,
//! and a later one finds those of all attempts before it, so nothing is asked twice. Their texts lie in a file
//! meanwhile; memory holds where each begins.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::info;

use super::super::super::retry::retry_unavailable;
use super::super::super::run::Attempt;
use super::spool::MAX_PROMPTS;
use crate::data::Question;
use crate::durable;
use crate::error::{Error, Kind, Result};

/// More than the answers to one chunk of prompts take.
const OBJECT_CAP: u64 = 256 << 20;
/// The texts of answers, one behind the other.
const TEXTS: &str = "answers.txt";

/// What the teacher said to a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    pub(super) text: String,
    /// It ended by itself, and says something.
    pub(super) ended: bool,
}

/// A line of the objects.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// SHA-256 over the teacher, the longest answer and the question.
    key: String,
    #[serde(flatten)]
    answer: Answer,
}

/// The answers so far.
pub(super) struct Answers<'a> {
    attempt: &'a Attempt,
    /// What every key begins with.
    asked: Sha256,
    texts: Texts,
    objects: u64,
}

/// SHA-256 over the teacher, the longest answer and the question.
type Key = [u8; 32];

/// Answers in a file.
struct Texts {
    writer: durable::Writer,
    reader: File,
    end: u64,
    /// Where each text lies; `None` for an answer that did not end, of which nothing is needed.
    places: HashMap<Key, Option<(u64, usize)>>,
    most: u64,
}

impl Texts {
    /// None, in a new file of `folder`; at most `most` later.
    fn create(folder: &Path, most: u64) -> Result<Self> {
        let path = folder.join(TEXTS);
        let writer = durable::Writer::create(&path)?;
        Ok(Self { writer, reader: File::open(&path)?, end: 0, places: HashMap::new(), most })
    }

    /// Adds an answer, unless there is one of this key.
    fn add(&mut self, key: Key, answer: &Answer) -> Result<()> {
        if self.places.contains_key(&key) {
            return Ok(());
        }
        if self.places.len() as u64 >= self.most {
            return Err(Error::validation(format!(
                "The attempts of the job have kept more than {} answers of the teacher. Start a job with fewer prompts.",
                self.most
            )));
        }
        let place = answer.ended.then_some((self.end, answer.text.len()));
        if place.is_some() {
            self.writer.write_all(answer.text.as_bytes())?;
            self.end += answer.text.len() as u64;
        }
        self.places.insert(key, place);
        Ok(())
    }

    /// Lets [`Texts::get`] find what was added.
    fn flush(&mut self) -> Result<()> {
        Ok(self.writer.flush()?)
    }

    fn get(&mut self, key: &Key) -> Result<Option<Answer>> {
        let Some(place) = self.places.get(key) else { return Ok(None) };
        let Some((begin, length)) = *place else { return Ok(Some(Answer { text: String::new(), ended: false })) };
        let mut text = vec![0; length];
        self.reader.seek(SeekFrom::Start(begin))?;
        self.reader.read_exact(&mut text)?;
        Ok(Some(Answer { text: String::from_utf8(text).map_err(Error::internal)?, ended: true }))
    }
}

impl<'a> Answers<'a> {
    /// With what earlier attempts kept; the texts lie in `folder`.
    pub(super) async fn open(attempt: &'a Attempt, folder: &Path, teacher: &str, limit: usize) -> Result<Self> {
        let asked = Sha256::new().chain_update(format!("{teacher}\n{limit}\n"));
        let mut texts = Texts::create(folder, MAX_PROMPTS)?;
        let (objects, halt) = (&attempt.objects, &attempt.halt);
        let mut listed = Vec::new();
        for prefix in attempt.layout.attempts() {
            listed
                .extend(retry_unavailable(halt, "listing answers", async || objects.list(&prefix).all().await).await?);
        }
        for object in listed.iter().filter(|object| object.uri.key().contains("/responses/")) {
            let read =
                retry_unavailable(halt, "reading answers", async || objects.get_bytes(&object.uri, OBJECT_CAP).await);
            let bytes = match read.await {
                Ok(bytes) => bytes,
                // Swept away meanwhile, or not ours: it is asked again.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Validation) => continue,
                Err(error) => return Err(error),
            };
            let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
            for line in lines {
                let mut key = Key::default();
                if hex::decode_to_slice(&line.key, &mut key).is_ok() {
                    texts.add(key, &line.answer)?;
                }
            }
        }
        texts.flush()?;
        if !texts.places.is_empty() {
            info!(job.id = attempt.claim.job.spec.id, answers = texts.places.len(), "going on with kept answers");
        }
        Ok(Self { attempt, asked, texts, objects: 0 })
    }

    /// Whether there is an answer to a question.
    pub(super) fn has(&self, question: &Question) -> bool {
        self.texts.places.contains_key(&self.key(question))
    }

    /// The answer to a question, if there is one; without its text if it did not end.
    pub(super) fn get(&mut self, question: &Question) -> Result<Option<Answer>> {
        let key = self.key(question);
        self.texts.get(&key)
    }

    /// Adds answers, which are safe when this returns.
    pub(super) async fn keep(&mut self, given: Vec<(&Question, Answer)>) -> Result<()> {
        let mut bytes = Vec::new();
        for (question, answer) in given {
            let key = self.key(question);
            self.texts.add(key, &answer)?;
            serde_json::to_writer(&mut bytes, &Line { key: hex::encode(key), answer })?;
            bytes.push(b'\n');
        }
        self.texts.flush()?;
        let layout = &self.attempt.layout;
        let uri = layout.response(self.attempt.claim.attempt(), self.objects);
        self.objects += 1;
        retry_unavailable(&self.attempt.halt, "keeping answers", async || {
            self.attempt.objects.put_bytes(&uri, bytes.clone(), &layout.put()).await
        })
        .await
    }

    fn key(&self, question: &Question) -> Key {
        // A question is two strings at most: it always serialises.
        let text = serde_json::to_string(question).unwrap_or_default();
        self.asked.clone().chain_update(text).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, ended: bool) -> Answer {
        Answer { text: text.into(), ended }
    }

    #[test]
    fn texts_come_back_from_the_file_and_their_number_is_bounded_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut texts = Texts::create(folder.path(), 3).unwrap();
        texts.add([1; 32], &said("süß", true)).unwrap();
        texts.add([2; 32], &said("cut off", false)).unwrap();
        texts.add([3; 32], &said("", true)).unwrap();
        texts.add([1; 32], &said("another", true)).unwrap();
        texts.flush().unwrap();
        assert_eq!(texts.get(&[1; 32]).unwrap(), Some(said("süß", true)));
        assert_eq!(texts.get(&[2; 32]).unwrap(), Some(said("", false)));
        assert_eq!(texts.get(&[3; 32]).unwrap(), Some(said("", true)));
        assert_eq!(texts.get(&[4; 32]).unwrap(), None);
        assert_eq!(std::fs::read_to_string(folder.path().join(TEXTS)).unwrap(), "süß", "no text lies in memory");
        let error = texts.add([4; 32], &said("one more", true)).unwrap_err();
        assert!(error.message().contains("kept more than 3 answers of the teacher"), "{error}");
    }
}
