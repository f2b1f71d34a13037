//! `tunesmith models`: which base models this installation has, and why a folder was left out; and an adapter
//! merged into its base.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::artifacts::{Difference, MergeOptions, Merged, MergedType, merge};
use crate::config::{ByteSize, Config};
use crate::error::{Error, Result};
use crate::models::{Customization, Registry};
use crate::service;

#[derive(clap::Subcommand)]
pub(super) enum Models {
    /// List the base models, and the folders that cannot be used with the reason
    List(List),
    /// Put an adapter into the weights of its base: a model of its own, in the form that transformers loads
    Merge(Merge),
}

#[derive(clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    config: Config,
}

#[derive(clap::Args)]
pub(super) struct Merge {
    /// The base: a Hugging Face model directory, or the id of a base model of this installation
    #[arg(long)]
    base: String,

    /// The adapter: a folder in peft's format, of LoRA (rsLoRA, DoRA, QLoRA) or of a tuned head
    #[arg(long)]
    adapter: PathBuf,

    /// The folder that the merged model is written into; it must not be there yet
    #[arg(long)]
    out: PathBuf,

    /// The type of the merged weights; each as in the base when absent
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,

    /// The most that a file of weights may hold, such as 5GB
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    max_shard_size: ByteSize,

    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: Config,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Dtype {
    Bf16,
    F16,
    F32,
}

impl From<Dtype> for MergedType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            Dtype::F32 => Self::F32,
        }
    }
}

impl Models {
    pub(super) fn run(self) -> Result<()> {
        match self {
            Self::List(list) => list.run(),
            Self::Merge(merge) => merge.run(),
        }
    }
}

impl List {
    fn run(self) -> Result<()> {
        let registry = Registry::open(&service::model_folders(&self.config.checked()?)?)?;
        println!("{:<44} {:>8} {:<5} CUSTOMIZATIONS", "ID", "CONTEXT", "CHAT");
        for model in registry.all() {
            let customizations: Vec<_> = model.customizations.iter().copied().map(Customization::name).collect();
            let chat = if model.chat { "yes" } else { "no" };
            println!("{:<44} {:>8} {chat:<5} {}", model.id, model.context_length, customizations.join(", "));
        }
        for (id, fault) in registry.all().filter_map(|model| Some((&model.id, model.chat_fault.as_ref()?))) {
            println!("not offered for chat: {id}: {fault}");
        }
        for left_out in registry.unreadable() {
            println!("left out: {}: {}", left_out.dir.display(), left_out.reason);
        }
        Ok(())
    }
}

impl Merge {
    fn run(self) -> Result<()> {
        let options = MergeOptions { dtype: self.dtype.map(Into::into), max_shard_bytes: self.max_shard_size.0 };
        let base = base(&self.base, self.config)?;
        let merged = merge(&base, &self.adapter, &self.out, &options)?;
        if self.json {
            let mut report = json!({"base": base, "adapter": self.adapter, "out": self.out});
            if let (Some(report), serde_json::Value::Object(merged)) =
                (report.as_object_mut(), serde_json::to_value(&merged)?)
            {
                report.extend(merged);
            }
            println!("{report:#}");
            return Ok(());
        }
        for line in said(&merged, &self.out) {
            println!("{line}");
        }
        Ok(())
    }
}

/// A directory, or else the base model of this id.
fn base(given: &str, config: Config) -> Result<PathBuf> {
    let dir = Path::new(given);
    if dir.join("config.json").exists() {
        return Ok(dir.to_path_buf());
    }
    let registry = Registry::open(&service::model_folders(&config.checked()?)?)?;
    let model = registry.get(given).ok_or_else(|| {
        Error::validation(format!(
            "--base {given}: there is no such model directory and no base model of this id; `tunesmith models list` \
             lists those there are"
        ))
    })?;
    Ok(model.dir.clone())
}

pub(super) fn said(merged: &Merged, out: &Path) -> Vec<String> {
    let Merged { method, dtype, files, bytes, changed_weights, untied, .. } = merged;
    let apart = |what: &str, difference: &Difference| {
        let Difference { tokens, largest, mean, same_token } = difference;
        format!(
            "Logits after {tokens} drawn tokens differ from {what} by at most {largest:.2e}, {mean:.2e} in the mean; the \
             likeliest next token is the same after {:.1} % of them.",
            100.0 * same_token
        )
    };
    let mut lines = vec![format!(
        "Merged {method}: {changed_weights} weights changed, {} of {dtype} in {} file{} in {}.",
        ByteSize(*bytes),
        files.len(),
        if files.len() == 1 { "" } else { "s" },
        out.display()
    )];
    if *untied {
        lines.push("The base's head was its embedding: the merged model has a head of its own.".into());
    }
    lines.push(apart("the adapter over this base", &merged.difference));
    if let Some(difference) = &merged.difference_to_four_bits {
        lines.push(apart("the adapter over the base in 4 bits, which it was trained on,", difference));
    }
    lines
}
