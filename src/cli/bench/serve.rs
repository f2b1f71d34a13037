//! `tunesmith bench serve`: requests that come at once go through the scheduler that answers them in the service,
//! each from a thread of its own, with random prompts and adapters in turn. What is measured is what a caller sees:
//! tokens per second of all together, and the time to each one's first token.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use candle_core::Device;
use serde_json::{Value, json};

use super::named;
use super::train::peak_bytes;
use crate::clock::Clock;
use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::infer::{Asked, Limits, Sampling, Scheduler};
use crate::models::{Decoder, Form, Frozen, Tuning};
use crate::rng::Rng;
use crate::tune::{LoraConfig, TuningMethod};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Serve {
    /// What the model looks like: a name from the list below, or a config.json
    #[arg(long, default_value = "cpu-135m")]
    shape: String,

    /// How its weights lie in memory: as a checkpoint published in bfloat16 is served, as one in float32 is, or in 4
    /// bits
    #[arg(long, value_enum, default_value_t = Weights::Bf16)]
    weights: Weights,

    /// Requests at once, one measurement for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    concurrency: Vec<usize>,

    /// Tokens of every prompt
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,

    /// Tokens of every answer
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,

    /// LoRA adapters that the requests take in turn; none asks the base
    #[arg(long, default_value_t = 1)]
    adapters: usize,

    /// Rank of the adapters, on all maps of every layer
    #[arg(long, default_value_t = 16)]
    rank: usize,

    /// Measurements of each number of requests; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// Memory of keys and values
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    cache_memory: ByteSize,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Weights {
    /// The layers' maps and the head in bfloat16
    Bf16,
    /// Everything in float32
    F32,
    /// The layers' maps in NF4
    Nf4,
}

/// When one caller saw each token, in seconds from the moment at which all asked.
struct Seen(Vec<f64>);

impl Seen {
    fn first(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }

    /// Tokens that came after `moment`.
    fn after(&self, moment: f64) -> usize {
        self.0.iter().filter(|at| **at > moment).count()
    }
}

/// The figures of one number of requests.
struct Figures {
    requests: usize,
    /// Of all requests together, from asking to the last token.
    tokens_per_second: f64,
    /// The same once everybody has a first token.
    decoded_per_second: f64,
    first_seconds: f64,
    last_first_seconds: f64,
}

impl Serve {
    pub(super) fn run(&self) -> Result<()> {
        if self.prompt_tokens == 0 || self.new_tokens < 2 || self.rounds == 0 || self.concurrency.contains(&0) {
            return Err(Error::validation(
                "bench serve needs at least one prompt token, two new tokens, one round and one request",
            ));
        }
        let (config, description, shape) = named(&self.shape)?;
        let clock = Clock::system();
        let form = match self.weights {
            Weights::Bf16 => Form::Served,
            Weights::F32 => Form::Frozen,
            Weights::Nf4 => Form::Nf4,
        };
        let decoder = Arc::new(Decoder::random(config, 1, &Device::Cpu, form)?);
        let adapters = self.adapters(&decoder)?;
        let limits =
            Limits { sequences: self.concurrency.iter().copied().max().unwrap_or(1), cache: self.cache_memory.0 };
        // No token ends an answer: every one has its full length.
        let scheduler = Scheduler::new(Arc::clone(&decoder), &[], limits);
        let mut rows = Vec::new();
        // What is measured first would else pay for the first touch of everything.
        self.round(&scheduler, &decoder, &adapters, 1, &clock)?;
        for requests in &self.concurrency {
            let rounds = (0..self.rounds)
                .map(|_| self.round(&scheduler, &decoder, &adapters, *requests, &clock))
                .collect::<Result<Vec<_>>>()?;
            rows.push(Figures::median(*requests, rounds));
        }
        if self.json {
            println!("{:#}", self.report(shape.map(|shape| shape.config_json()), &decoder, &rows));
        } else {
            print!("{}", self.table(&description, &decoder, &rows));
        }
        Ok(())
    }

    /// Adapters with values everywhere, as trained ones have, drawn by their number.
    fn adapters(&self, decoder: &Decoder) -> Result<Vec<Asked<'static>>> {
        let longest = decoder.config().max_positions;
        if self.adapters == 0 {
            return Ok(vec![Asked::borrowed(&Frozen, longest)]);
        }
        let config = LoraConfig { rank: self.rank, ..Default::default() };
        (0..self.adapters)
            .map(|number| {
                let method = TuningMethod::Lora(config.clone()).build(decoder, None, number as u64)?;
                for one in method.trainables() {
                    let noise = Rng::new(number as u64, &one.name, 0).normals(one.var.elem_count(), 0.01);
                    one.var.set(&candle_core::Tensor::from_vec(noise, one.var.dims(), decoder.device())?)?;
                }
                Ok(Asked::owned(method as Box<dyn Tuning>, longest))
            })
            .collect()
    }

    /// All requests at once, each from its own thread.
    fn round(
        &self,
        scheduler: &Scheduler,
        decoder: &Decoder,
        adapters: &[Asked<'static>],
        requests: usize,
        clock: &Clock,
    ) -> Result<Vec<Seen>> {
        let together = Barrier::new(requests);
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..requests)
                .map(|request| {
                    let (together, asked) = (&together, adapters[request % adapters.len()].clone());
                    let prompt = self.prompt(request, decoder.config().vocab_size);
                    scope.spawn(move || {
                        together.wait();
                        self.request(scheduler, asked, &prompt, clock)
                    })
                })
                .collect();
            callers
                .into_iter()
                .map(|caller| caller.join().map_err(|_| Error::internal(anyhow::anyhow!("a caller panicked")))?)
                .collect()
        })
    }

    fn request(&self, scheduler: &Scheduler, asked: Asked<'static>, prompt: &[u32], clock: &Clock) -> Result<Seen> {
        let begun: Instant = clock.monotonic();
        let mut seen = Vec::with_capacity(self.new_tokens);
        let mut on_token = |_: u32| {
            seen.push(begun.elapsed().as_secs_f64());
            Ok(true)
        };
        let greedy = Sampling { max_tokens: self.new_tokens, temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 };
        scheduler.ask(asked, prompt, &greedy, &AtomicBool::new(false), &mut on_token)?;
        Ok(Seen(seen))
    }

    fn prompt(&self, request: usize, vocabulary: usize) -> Vec<u32> {
        let mut rng = Rng::new(7, "bench serve", request as u64);
        (0..self.prompt_tokens).map(|_| (rng.uniform() * vocabulary as f32) as u32 % vocabulary as u32).collect()
    }

    fn table(&self, shape: &str, decoder: &Decoder, rows: &[Figures]) -> String {
        let peak =
            peak_bytes().map_or("not known on this system".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        let mut table = format!(
            "{shape}, weights {:.2} GB, {} adapters of rank {}, on {} threads: prompts of {} tokens, answers of {}\n\
             peak memory {peak}; median of {} rounds\n\n\
             requests  tokens/s  decoding tokens/s  first token, median  first token, last\n",
            decoder.bytes() as f64 / 1e9,
            self.adapters,
            self.rank,
            rayon::current_num_threads(),
            self.prompt_tokens,
            self.new_tokens,
            self.rounds,
        );
        for row in rows {
            table.push_str(&format!(
                "{:>8}  {:>8.1}  {:>17.1}  {:>17.3} s  {:>15.3} s\n",
                row.requests, row.tokens_per_second, row.decoded_per_second, row.first_seconds, row.last_first_seconds,
            ));
        }
        table
    }

    fn report(&self, config: Option<Value>, decoder: &Decoder, rows: &[Figures]) -> Value {
        let row = |row: &Figures| {
            json!({
                "requests": row.requests,
                "tokensPerSecond": row.tokens_per_second,
                "decodedPerSecond": row.decoded_per_second,
                "firstTokenSeconds": row.first_seconds,
                "lastFirstTokenSeconds": row.last_first_seconds,
            })
        };
        json!({
            "shape": self.shape,
            "config": config,
            "weights": format!("{:?}", self.weights).to_lowercase(),
            "weightBytes": decoder.bytes(),
            "promptTokens": self.prompt_tokens,
            "newTokens": self.new_tokens,
            "adapters": self.adapters,
            "rank": self.rank,
            "threads": rayon::current_num_threads(),
            "rounds": self.rounds,
            "peakBytes": peak_bytes(),
            "rows": rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

impl Figures {
    fn median(requests: usize, rounds: Vec<Vec<Seen>>) -> Self {
        let of = |value: &dyn Fn(&[Seen]) -> f64| median(rounds.iter().map(|seen| value(seen)).collect());
        let last = |seen: &[Seen]| seen.iter().map(Seen::last).fold(0.0, f64::max);
        let last_first = |seen: &[Seen]| seen.iter().map(Seen::first).fold(0.0, f64::max);
        let tokens = |seen: &[Seen]| seen.iter().map(|one| one.0.len()).sum::<usize>() as f64;
        let pace = |seen: &[Seen]| {
            let from = last_first(seen);
            let decoded: usize = seen.iter().map(|one| one.after(from)).sum();
            decoded as f64 / (last(seen) - from).max(1e-9)
        };
        Self {
            requests,
            tokens_per_second: of(&|seen| tokens(seen) / last(seen).max(1e-9)),
            decoded_per_second: of(&pace),
            first_seconds: of(&|seen| median(seen.iter().map(Seen::first).collect())),
            last_first_seconds: of(&last_first),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
