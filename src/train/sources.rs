//! Everything a run reads, checked before anything is computed: the base model's shape and tokenizer,
//! the training and validation data as corpora, and one digest over all of it and the settings, by
//! which a checkpoint knows its run.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::hold_out::hold_out;
use super::identity::RunIdentity;
use super::outputs::{Learned, facts};
use super::{Base, Observer, Plan, Settings, StopFlag, start};
use crate::data::corpus::sha256_of;
use crate::data::{Corpus, Encoder, Objective, Options, Prepared, REPORT_FILE, Source, prepare};
use crate::durable;
use crate::error::{Error, Result};
use crate::models::limits::read_small_text;
use crate::models::{DecoderConfig, Tokenizer};
use crate::tune::{TuningMethod, VirtualTokens};

/// Documents are cut to rows of at most this many tokens when the caller asks for no length: longer
/// rows cost memory and make rare steps.
const DOCUMENT_TOKENS: usize = 2048;

/// What a run reads.
pub(super) struct Sources {
    pub(super) config: DecoderConfig,
    /// What is trained: of the adapter that the run goes on from, if it does.
    pub(super) method: TuningMethod,
    /// The tokens that virtual tokens begin as, where they begin as a text.
    pub(super) text: Option<Vec<u32>>,
    /// The folder with the tokenizer.
    pub(super) tokenizer: PathBuf,
    pub(super) training: Corpus,
    pub(super) validation: Vec<Corpus>,
    pub(super) max_tokens: usize,
    /// SHA-256 over the base model's configuration and weights.
    pub(super) base_sha256: String,
    /// All that the run depends on.
    pub(super) run: RunIdentity,
}

impl Sources {
    /// Checks and tokenises the data; `None` when the run was asked to stop.
    pub(super) fn read(plan: &Plan, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<Self>> {
        Self::with_digest(plan, base_digest, observer, stop)
    }

    /// The same for a look at a run that will not begin: the base's weights need not be there, and are not read.
    pub(super) fn glance(plan: &Plan, observer: &mut dyn Observer, stop: &StopFlag) -> Result<Option<Self>> {
        Self::with_digest(plan, |_| Ok(String::new()), observer, stop)
    }

    fn with_digest(
        plan: &Plan,
        base_digest: impl FnOnce(&Base) -> Result<String>,
        observer: &mut dyn Observer,
        stop: &StopFlag,
    ) -> Result<Option<Self>> {
        let (config, tokenizer) = match &plan.base {
            Base::Directory(dir) => (DecoderConfig::read(dir)?, dir.clone()),
            Base::Random { config, tokenizer, .. } => (DecoderConfig::parse(&read(config)?)?, tokenizer.clone()),
        };
        let method = start::method_of(plan, &config)?;
        method.check(&config)?;
        let max_tokens = max_tokens(&plan.settings, &config, &method, plan.objective)?;
        let vocabulary = Tokenizer::read(&tokenizer)?;
        let encoder = Encoder::of(&vocabulary)?;
        let given = match method.begin() {
            Some(VirtualTokens::Text(Some(text))) => Some(vocabulary.encode(text, false)?),
            _ => None,
        };

        let mut read = |path: &Path, folder: &str| -> Result<Option<Corpus>> {
            corpus(plan, &encoder, max_tokens, path, folder, observer, stop)
        };
        let Some(mut training) = read(&plan.training, "training")? else { return Ok(None) };
        let mut validation = Vec::with_capacity(plan.validation.len());
        for (index, path) in plan.validation.iter().enumerate() {
            let Some(corpus) = read(path, &format!("validation-{index}"))? else { return Ok(None) };
            validation.push(corpus);
        }
        if let Some(percentage) = plan.settings.eval_percentage.filter(|_| validation.is_empty()) {
            let (kept, held) = hold_out(&training, percentage, plan.seed(), &plan.work_dir.join("prepared"))?;
            training = kept;
            validation.push(held);
        }
        if plan.settings.early_stopping.is_some() && validation.is_empty() {
            observer
                .warn("early stopping has no effect without validation data: give a validator, or set evalPercentage");
        }

        let text = given.or_else(|| match method.begin() {
            Some(VirtualTokens::Text(None)) => Some(training.record(0).tokens),
            _ => None,
        });

        let base_sha256 = base_digest(&plan.base)?;
        let held = validation.iter().map(|corpus| corpus.manifest().key.clone()).collect();
        let run = RunIdentity::of(plan, &base_sha256, &training.manifest().key, held)?;
        Ok(Some(Self { config, method, text, tokenizer, training, validation, max_tokens, base_sha256, run }))
    }

    /// What a run over them learned from, for its manifest.
    pub(super) fn learned(&self, plan: &Plan) -> Learned<'_> {
        let of = |corpus: &Corpus| corpus.manifest().sources.iter().map(facts).collect::<Vec<_>>();
        Learned {
            customization_type: match plan.objective {
                _ if plan.teacher.is_some() => "DISTILLATION",
                Objective::FineTuning | Objective::Preferences => "FINE_TUNING",
                Objective::ContinuedPreTraining => "CONTINUED_PRE_TRAINING",
            },
            method: &self.method,
            base_sha256: &self.base_sha256,
            tokenizer: &self.tokenizer,
            training_data: of(&self.training),
            validation_data: self.validation.iter().flat_map(of).collect(),
        }
    }
}

/// The longest sequence in tokens.
fn max_tokens(
    settings: &Settings,
    config: &DecoderConfig,
    method: &TuningMethod,
    objective: Objective,
) -> Result<usize> {
    // Virtual tokens take positions from every record.
    let longest = config.max_positions - method.virtual_tokens();
    match (settings.max_sequence_length, objective) {
        (Some(length), _) if length > longest => {
            let less = match method.virtual_tokens() {
                0 => String::new(),
                tokens => format!(", of which {tokens} are virtual tokens"),
            };
            Err(Error::validation(format!(
                "maxSequenceLength is {length}, but the model's context length is {}{less}",
                config.max_positions
            )))
        }
        (Some(length), _) => Ok(length),
        (None, Objective::FineTuning | Objective::Preferences) => Ok(longest),
        (None, Objective::ContinuedPreTraining) => Ok(longest.min(DOCUMENT_TOKENS)),
    }
}

/// One data file as a corpus; `None` when the run was asked to stop.
fn corpus(
    plan: &Plan,
    encoder: &Encoder,
    max_tokens: usize,
    path: &Path,
    folder: &str,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Option<Corpus>> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !path.is_file() {
        return Err(Error::validation(format!("cannot read the data file {name}: there is no such file"))
            .at(path.display().to_string()));
    }
    let source = Source { path: path.to_path_buf(), name };
    let options = Options { objective: plan.reads()?, max_tokens, min_records: 1 };
    let folder = plan.work_dir.join("prepared").join(folder);
    std::fs::create_dir_all(&folder)?;
    let prepared = prepare(&[source], encoder, &options, &folder, &mut |progress| {
        observer.progress(progress.bytes, progress.total_bytes);
        if stop.is_raised() { Err(Error::internal(anyhow::anyhow!("asked to stop"))) } else { Ok(()) }
    });
    match prepared {
        // Whatever else went wrong, the caller wants to stop and will come back.
        Err(_) if stop.is_raised() => Ok(None),
        Err(error) => Err(error),
        Ok(Prepared::Ready(corpus)) => Ok(Some(corpus)),
        Ok(Prepared::Refused(report)) => {
            durable::copy(&report.path, &plan.output().join(REPORT_FILE))?;
            Err(Error::validation(report.message))
        }
    }
}

/// A digest over the files that make the base model what it is.
pub(super) fn base_digest(base: &Base) -> Result<String> {
    let mut digest = Sha256::new();
    match base {
        Base::Random { config, seed, .. } => {
            digest.update(sha256_of(config)?);
            digest.update(seed.to_le_bytes());
        }
        Base::Directory(dir) => {
            let mut files = vec![dir.join("config.json")];
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "safetensors") {
                    files.push(path);
                }
            }
            files.sort_unstable();
            for file in files {
                digest.update(sha256_of(&file)?);
            }
        }
    }
    Ok(hex::encode(digest.finalize()))
}

fn read(path: &Path) -> Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    read_small_text(path.parent().unwrap_or(Path::new("")), &name)
}
