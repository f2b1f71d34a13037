//! `tunesmith bench serve`: requests go through the scheduler that answers them in the service, each caller's from a
//! thread of its own, with random prompts and adapters in turn: all of one length and at once, or of many lengths and
//! one after the other. What is measured is what a caller sees: tokens per second of all together, the time to first
//! token, and the time per output token.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use serde_json::{Value, json};

use super::named;
use super::traffic::{self, Figures, Length, Seen, Work};
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

    /// Requests for each of those at once, in all: the next is sent as soon as one is answered
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    requests_each: usize,

    /// Tokens of every prompt: a number, or a range such as 8-512, of which any is as likely
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    prompt_tokens: Length,

    /// Tokens of every answer, likewise
    #[arg(long, value_name = "TOKENS", default_value = "64")]
    new_tokens: Length,

    /// LoRA adapters that the requests take in turn; none asks the base
    #[arg(long, default_value_t = 1)]
    adapters: usize,

    /// Ranks that the adapters have in turn, on all maps of every layer
    #[arg(long, value_name = "RANKS", value_delimiter = ',', default_values_t = [16])]
    rank: Vec<usize>,

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

impl Serve {
    pub(super) fn run(&self) -> Result<()> {
        let none = self.rounds == 0 || self.requests_each == 0 || self.concurrency.contains(&0);
        if none || self.new_tokens.least() < 2 || self.rank.is_empty() {
            return Err(Error::validation(
                "bench serve needs at least two new tokens, one round, one request and a rank",
            ));
        }
        let (config, description, shape) = named(&self.shape)?;
        let (longest, most) = (self.prompt_tokens.most() + self.new_tokens.most(), config.max_positions);
        if longest > most {
            return Err(Error::validation(format!(
                "a prompt and its answer may have {longest} tokens together; {} holds {most}",
                self.shape
            )));
        }
        let clock = Clock::system();
        let form = match self.weights {
            Weights::Bf16 => Form::Served,
            Weights::F32 => Form::Frozen,
            Weights::Nf4 => Form::Nf4,
        };
        let decoder = Arc::new(Decoder::random(config, 1, &Device::Cpu, form)?);
        let adapters = self.adapters(&decoder)?;
        let sequences = self.concurrency.iter().copied().max().unwrap_or(1);
        let limits = Limits { sequences, cache: self.cache_memory.0 };
        // No token ends an answer: every one has its full length.
        let scheduler = Scheduler::new(Arc::clone(&decoder), &[], limits);
        let mut rows = Vec::new();
        // What is measured first would else pay for the first touch of everything.
        self.round(&scheduler, &decoder, &adapters, 1, 1, &clock)?;
        for concurrency in self.concurrency.iter().copied() {
            let requests = concurrency * self.requests_each;
            let rounds = (0..self.rounds)
                .map(|_| self.round(&scheduler, &decoder, &adapters, concurrency, requests, &clock))
                .collect::<Result<Vec<_>>>()?;
            rows.push(Figures::median(concurrency, requests, &rounds));
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
        (0..self.adapters)
            .map(|number| {
                let config = LoraConfig { rank: self.rank[number % self.rank.len()], ..Default::default() };
                let mut method = TuningMethod::Lora(config).build(decoder, None, number as u64)?;
                for one in method.trainables() {
                    let noise = Rng::new(number as u64, &one.name, 0).normals(one.var.elem_count(), 0.01);
                    one.var.set(&candle_core::Tensor::from_vec(noise, one.var.dims(), decoder.device())?)?;
                }
                method.settle()?;
                Ok(Asked::owned(method as Box<dyn Tuning>, longest))
            })
            .collect()
    }

    /// So many requests at a time until all are answered, each caller on a thread of its own.
    fn round(
        &self,
        scheduler: &Scheduler,
        decoder: &Decoder,
        adapters: &[Asked<'static>],
        callers: usize,
        requests: usize,
        clock: &Clock,
    ) -> Result<Vec<Seen>> {
        traffic::send(callers, requests, clock, &|request, on_token| {
            let Work { prompt_tokens, new_tokens } = self.work(request);
            let prompt = prompt(request, prompt_tokens, decoder.config().vocab_size);
            let greedy = Sampling { max_tokens: new_tokens, temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 };
            let mut on_token = |_: u32| {
                on_token();
                Ok(true)
            };
            let asked = adapters[request % adapters.len()].clone();
            scheduler.ask(asked, &prompt, &greedy, &AtomicBool::new(false), &mut on_token).map(|_| ())
        })
    }

    fn work(&self, request: usize) -> Work {
        Work::of(request, &self.prompt_tokens, &self.new_tokens)
    }

    fn table(&self, shape: &str, decoder: &Decoder, rows: &[Figures]) -> String {
        let peak =
            peak_bytes().map_or("not known on this system".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        let ranks: Vec<String> = self.rank.iter().map(usize::to_string).collect();
        let mut table = format!(
            "{shape}, weights {:.2} GB, {} adapters of rank {}, on {} threads: prompts of {} tokens, answers of {}\n\
             peak memory {peak}; median of {} rounds, {} requests for each of those at once\n\n\
             at once  tokens/s  decoding tokens/s  first token: median   slowest  per output token\n",
            decoder.bytes() as f64 / 1e9,
            self.adapters,
            ranks.join(", "),
            rayon::current_num_threads(),
            self.prompt_tokens,
            self.new_tokens,
            self.rounds,
            self.requests_each,
        );
        for row in rows {
            table.push_str(&format!(
                "{:>7}  {:>8.1}  {:>17}  {:>17.3} s  {:>6.3} s  {:>13.1} ms\n",
                row.concurrency,
                row.tokens_per_second,
                row.decoded_per_second.map_or("-".into(), |pace| format!("{pace:.1}")),
                row.first_seconds,
                row.slowest_first_seconds,
                row.token_seconds * 1e3,
            ));
        }
        table
    }

    fn report(&self, config: Option<Value>, decoder: &Decoder, rows: &[Figures]) -> Value {
        let row = |row: &Figures| {
            let work = (0..row.requests).map(|request| {
                let Work { prompt_tokens, new_tokens } = self.work(request);
                json!([prompt_tokens, new_tokens])
            });
            json!({
                "concurrency": row.concurrency,
                "requests": row.requests,
                "work": work.collect::<Vec<_>>(),
                "tokensPerSecond": row.tokens_per_second,
                "decodedPerSecond": row.decoded_per_second,
                "firstTokenSeconds": row.first_seconds,
                "slowestFirstTokenSeconds": row.slowest_first_seconds,
                "tokenSeconds": row.token_seconds,
            })
        };
        json!({
            "shape": self.shape,
            "config": config,
            "weights": format!("{:?}", self.weights).to_lowercase(),
            "weightBytes": decoder.bytes(),
            "promptTokens": self.prompt_tokens.to_string(),
            "newTokens": self.new_tokens.to_string(),
            "requestsEach": self.requests_each,
            "adapters": self.adapters,
            "ranks": self.rank,
            "threads": rayon::current_num_threads(),
            "rounds": self.rounds,
            "peakBytes": peak_bytes(),
            "rows": rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// Random tokens, drawn by the request's number.
fn prompt(request: usize, tokens: usize, vocabulary: usize) -> Vec<u32> {
    let mut rng = Rng::new(7, "bench serve", request as u64);
    (0..tokens).map(|_| (rng.uniform() * vocabulary as f32) as u32 % vocabulary as u32).collect()
}
