//! `tunesmith estimate job.json`: what a job will take, before it runs. Reads the job file that `tunesmith
//! train` reads, and ends with an error when the job does not fit.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::job;
use super::scratch::Scratch;
use crate::config::{ByteSize, MemorySettings};
use crate::error::{Error, Result};
use crate::train::{self, DataFacts, Decision, Estimate, Memory, RunFacts};

/// Say what a job file will take before it runs.
#[derive(Debug, clap::Args)]
#[command(after_long_help = format!("{HELP}\n\n{}", job::help()))]
pub(super) struct Args {
    /// The job file, as `tunesmith train` takes it
    pub(super) job: PathBuf,

    /// What the job is to be trained on, as `tunesmith train` takes it
    #[arg(long)]
    device: Option<String>,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    memory: MemorySettings,
}

const HELP: &str = "\
Tokenises the data (of a training file of more than 32 MiB a sample), plans the memory as the run itself would, and
measures for about two seconds how fast this machine trains one layer of the model's shape. Nothing is written, and of
the base only config.json and the tokenizer are needed. Exits with 1 when the job does not fit, and says what would.";

/// Prints the estimate.
///
/// # Errors
/// When the job file, the data or the base cannot be used, or the job does not fit into memory.
pub(super) fn run(args: &Args) -> Result<()> {
    let plan = job::plan(&args.job, args.device.as_deref(), Memory::host(args.memory.bytes()?))?;
    let scratch = Scratch::new("estimate", &plan.clock)?;
    let estimate = train::estimate(&plan, scratch.path(), &mut ())?;
    if args.json {
        println!("{:#}", as_json(&estimate));
    } else {
        print!("{}", as_text(&args.job, &estimate));
    }
    match estimate.memory {
        Ok(_) => Ok(()),
        Err(refusal) => Err(refusal),
    }
}

fn as_text(job: &Path, estimate: &Estimate) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = write_text(&mut text, job, estimate);
    text
}

fn write_text(text: &mut String, job: &Path, estimate: &Estimate) -> std::fmt::Result {
    let Estimate { data, run, model, weights, trained, method, memory, operations, rate } = estimate;
    let DataFacts { sampled, records, tokens, labelled, longest, median, validation_tokens } = data;
    let about = if *sampled < 1.0 { "about " } else { "" };
    writeln!(text, "{}\n", job.display())?;
    writeln!(text, "Data    {about}{} records, {} tokens an epoch", count(*records), count(*tokens))?;
    writeln!(text, "        median {median} tokens a record, longest {longest}")?;
    let share = 100.0 * *labelled as f64 / (*tokens).max(1) as f64;
    writeln!(text, "        {} of them are learned ({share:.0} %)", count(*labelled))?;
    if *validation_tokens > 0 {
        writeln!(text, "        {} tokens of validation data", count(*validation_tokens))?;
    }
    if *sampled < 1.0 {
        writeln!(text, "        read from a sample of {:.1} % of the file", 100.0 * sampled)?;
    }
    writeln!(text, "Model   {model}, {} weights", count(*weights))?;
    let share = 100.0 * *trained as f64 / (*weights).max(1) as f64;
    writeln!(text, "        {} trained by {method} ({share:.2} %)", count(*trained))?;
    let RunFacts { steps, epochs, validations, micro_batches, packed } = run;
    writeln!(text, "Run     {} steps, {epochs:.1} epochs", count(*steps))?;
    writeln!(text, "        {micro_batches:.1} micro-batches a step, {packed:.1} records packed in each")?;
    if *validations > 0 {
        writeln!(text, "        {validations} passes over the validation data")?;
    }
    let Ok(decision) = memory else { return writeln!(text) };
    memory_table(text, decision)?;
    let cut = if decision.keeps_graphs { "the graphs of all layers are kept" } else { "layers are run again" };
    writeln!(text, "Cut     {} tokens at a time at most, {cut}", count(decision.token_budget as u64))?;
    if decision.lanes > 1 {
        writeln!(text, "        {} micro-batches side by side", decision.lanes)?;
    }
    writeln!(text, "Time    {operations:.2e} operations at {:.0} GFLOP/s, measured here", rate / 1e9)?;
    if let Some(time) = estimate.time() {
        writeln!(text, "        about {}", duration(time))?;
    }
    Ok(())
}

fn memory_table(text: &mut String, decision: &Decision) -> std::fmt::Result {
    let Decision { need, memory, host, .. } = decision;
    writeln!(text, "\nMemory  {}", need.stage)?;
    for part in &need.parts {
        writeln!(text, "        {:<28}{:>10}", part.kind.to_string(), ByteSize(part.bytes).to_string())?;
    }
    let share = 100.0 * need.bytes as f64 / memory.bytes.max(1) as f64;
    let (needed, there) = (ByteSize(need.bytes).to_string(), ByteSize(memory.bytes));
    writeln!(text, "        {:<28}{needed:>10}  of {there} ({share:.0} %)\n", "in all")?;
    let Some(host) = host else { return Ok(()) };
    writeln!(text, "        in the machine's memory, {}", host.stage)?;
    for part in &host.parts {
        writeln!(text, "        {:<28}{:>10}", part.kind.to_string(), ByteSize(part.bytes).to_string())?;
    }
    writeln!(text, "        {:<28}{:>10}\n", "in all", ByteSize(host.bytes).to_string())
}

fn as_json(estimate: &Estimate) -> Value {
    let Estimate { data, run, model, weights, trained, method, memory, operations, rate } = estimate;
    let memory = match memory {
        Ok(decision) => json!({
            "fits": true,
            "neededBytes": decision.need.bytes,
            "availableBytes": decision.memory.bytes,
            "when": decision.need.stage.to_string(),
            "parts": decision.need.parts.iter()
                .map(|part| json!({"name": part.kind.to_string(), "bytes": part.bytes})).collect::<Vec<_>>(),
            "microBatchTokens": decision.token_budget,
            "largestMicroBatchRows": decision.largest_rows,
            "graphsKept": decision.keeps_graphs,
            "sideBySide": decision.lanes,
            "optimizerPaged": decision.pages_optimizer,
            "neededHostBytes": decision.host.as_ref().map(|host| host.bytes),
        }),
        Err(refusal) => json!({"fits": false, "message": Error::message(refusal)}),
    };
    json!({
        "data": {
            "sampled": data.sampled, "records": data.records, "tokensPerEpoch": data.tokens,
            "labelledTokensPerEpoch": data.labelled, "longest": data.longest, "median": data.median,
            "validationTokens": data.validation_tokens,
        },
        "model": {"architecture": model, "weights": weights, "trained": trained, "tuningMethod": method},
        "run": {
            "steps": run.steps, "epochs": run.epochs, "validations": run.validations,
            "microBatchesPerStep": run.micro_batches, "recordsPerMicroBatch": run.packed,
        },
        "memory": memory,
        "operations": operations,
        "operationsPerSecond": rate,
        "seconds": estimate.time().map(|time| time.as_secs_f64()),
    })
}

/// A number with its thousands apart.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// As people say it, to two units.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.0} s", time.as_secs_f64().max(1.0)),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_as_people_write_them() {
        for (number, text) in [(7, "7"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        for (seconds, text) in [(3, "3 s"), (75, "1 min 15 s"), (7260, "2 h 1 min"), (200_000, "2 d 7 h")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
