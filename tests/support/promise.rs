//! The ledger of `tests/promises`: what a test tried of a promise, how often, and what it found. Each run of a test
//! leaves one line of JSON; a test that ends by a panic leaves one that says so, with what it had found by then.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use crate::jobs::database::variable;

/// Whether this run is at the scale that is published; else a short version of each promise is run.
pub(crate) fn full() -> bool {
    variable("TEST_SCALE").as_deref() == Some("full")
}

/// How often something is to be tried: `TEST_TIMES` of the environment, or what the scale says.
pub(crate) fn times(short: usize, full_scale: usize) -> usize {
    let given = variable("TEST_TIMES").map(|times| times.parse().expect("TEST_TIMES is a number"));
    given.unwrap_or(if full() { full_scale } else { short })
}

/// The seed of this run; TEST_SEED repeats one that failed.
pub(crate) fn seed() -> u64 {
    let given = variable("TEST_SEED").map(|seed| seed.parse().expect("TEST_SEED is a number"));
    let seed = given.unwrap_or_else(|| tunesmith::clock::Clock::system().seed());
    println!("TEST_SEED={seed}");
    seed
}

/// Where the lines go.
pub(crate) fn folder() -> Option<PathBuf> {
    variable("TEST_PROMISES").map(PathBuf::from)
}

/// Numerical Recipes' generator: small, and the same everywhere for a seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

/// A promise that is being tried.
pub(crate) struct Promise {
    number: u8,
    test: &'static str,
    on: String,
    begun: Instant,
    seed: Option<u64>,
    tried: Vec<String>,
    found: Vec<String>,
    held: bool,
}

impl Promise {
    /// Promise `number`, as `test` tries it on a backend.
    pub(crate) fn new(number: u8, test: &'static str, on: impl Into<String>) -> Self {
        Self {
            number,
            test,
            on: on.into(),
            begun: Instant::now(),
            seed: None,
            tried: Vec::new(),
            found: Vec::new(),
            held: false,
        }
    }

    /// What it turned out to stand on.
    pub(crate) fn stands_on(&mut self, on: &str) {
        self.on = on.into();
    }

    pub(crate) fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// What was done, with its count.
    pub(crate) fn tried(&mut self, what: impl Into<String>) {
        self.tried.push(what.into());
    }

    /// What came out of it, with its figure.
    pub(crate) fn found(&mut self, what: impl Into<String>) {
        self.found.push(what.into());
    }

    /// It was kept; without this it counts as broken.
    pub(crate) fn held(mut self) {
        self.held = true;
    }

    fn line(&self) -> Value {
        json!({
            "promise": self.number,
            "test": self.test,
            "on": self.on,
            "scale": if full() { "full" } else { "short" },
            "seed": self.seed,
            "tried": self.tried,
            "found": self.found,
            "held": self.held,
            "seconds": self.begun.elapsed().as_secs(),
        })
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let line = self.line();
        println!("PROMISE {line}");
        let Some(folder) = folder() else { return };
        let written = std::fs::create_dir_all(&folder).and_then(|()| {
            let path = folder.join("lines.jsonl");
            let mut file = std::fs::File::options().create(true).append(true).open(path)?;
            file.write_all(format!("{line}\n").as_bytes())
        });
        if let Err(cause) = written {
            eprintln!("the line of promise {} was not kept: {cause}", self.number);
        }
    }
}
