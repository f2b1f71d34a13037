//! `tunesmith bench`: what this machine does, measured on random weights of a published shape, before anyone waits
//! for it.

mod serve;
mod traffic;
mod train;

use crate::error::{Error, Result};
use crate::models::DecoderConfig;
use crate::train::{SHAPES, Shape};

/// Measure this machine
#[derive(Debug, clap::Subcommand)]
pub(super) enum Bench {
    /// Measure training: tokens per second, memory, and where the time goes
    #[command(after_long_help = shapes_help())]
    Train(train::Train),
    /// Measure answering: tokens per second and the time to the first one, at several numbers of requests at once
    #[command(after_long_help = shapes_help())]
    Serve(serve::Serve),
}

fn shapes_help() -> String {
    let line = |shape: &Shape| {
        let Shape { name, model, method, batch, tokens, .. } = shape;
        format!("  {name:<9} {model}, {method}, {batch} × {tokens} tokens")
    };
    format!("Shapes:\n{}", SHAPES.iter().map(line).collect::<Vec<_>>().join("\n"))
}

impl Bench {
    pub(super) fn run(self) -> Result<()> {
        match self {
            Self::Train(train) => train.run(),
            Self::Serve(serve) => serve.run(),
        }
    }
}

/// The decoder of a shape, what to call it, and its entry when it has one: a name, or a `config.json`.
fn named(shape: &str) -> Result<(DecoderConfig, String, Option<&'static Shape>)> {
    if shape.ends_with(".json") {
        let text = std::fs::read_to_string(shape).map_err(|cause| Error::validation(format!("{shape}: {cause}")))?;
        return Ok((DecoderConfig::parse(&text)?, shape.into(), None));
    }
    let shape = Shape::named(shape)?;
    Ok((shape.config()?, format!("{} ({})", shape.name, shape.model), Some(shape)))
}
