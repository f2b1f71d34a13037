//! Files that strangers write, mutated. Each file beside this one is a target: its body, which cargo-fuzz runs from
//! `fuzz/`, and the inputs that mutations begin with. Here every body runs for a few seconds without nightly:
//! `TUNESMITH_FUZZ_SEED` repeats a run, `TUNESMITH_FUZZ_SECONDS` makes it longer.

mod adapter_config;
mod chat_template;
mod config;
mod grader_formula;
mod invocation_log_line;
mod safetensors;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Seconds that a target runs when nothing else is asked for.
const SECONDS: u64 = 2;
/// The largest input that mutations make.
const MAX_INPUT: usize = 1 << 16;

#[test]
fn no_config_json_stops_the_reader() {
    run("config", config::body, seeds("config", &config::seeds()));
}

#[test]
fn no_safetensors_file_stops_the_reader() {
    run("safetensors", safetensors::body, seeds("safetensors", &safetensors::seeds()));
}

#[test]
fn no_tokenizer_json_stops_the_reader() {
    run("tokenizer", tokenizer::body, seeds("tokenizer", &tokenizer::seeds()));
}

#[test]
fn no_adapter_config_json_stops_the_reader() {
    run("adapter_config", adapter_config::body, seeds("adapter_config", &adapter_config::seeds()));
}

#[test]
fn no_chat_template_stops_the_renderer() {
    run("chat_template", chat_template::body, seeds("chat_template", &chat_template::seeds()));
}

#[test]
fn no_formula_of_a_grader_stops_the_computer() {
    run("grader_formula", grader_formula::body, seeds("grader_formula", &[]));
}

#[test]
fn no_line_of_an_invocation_log_stops_the_reader() {
    run("invocation_log_line", invocation_log_line::body, seeds("invocation_log_line", &[]));
}

/// The files in `seeds/<target>` and `more`.
fn seeds(target: &str, more: &[PathBuf]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.extend_from_slice(more);
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Gives `body` every seed as it is, then mutations of them until the time is up.
fn run(target: &str, body: fn(&[u8]), seeds: Vec<Vec<u8>>) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let drawn = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("TUNESMITH_FUZZ_SEED").unwrap_or_else(drawn);
    let time = Duration::from_secs(number("TUNESMITH_FUZZ_SECONDS").unwrap_or(SECONDS));
    eprintln!("fuzz {target}: TUNESMITH_FUZZ_SEED={seed}");
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|input| body(input));
    let (begun, mut rng, mut inputs) = (Instant::now(), Rng(seed), 0_u64);
    while begun.elapsed() < time {
        let mut input = rng.pick(&seeds).clone();
        for _ in 0..=rng.below(4) {
            mutate(&mut input, &seeds, &mut rng);
        }
        input.truncate(MAX_INPUT);
        let outcome = std::panic::catch_unwind(|| body(&input));
        if outcome.is_err() {
            let path = std::env::temp_dir().join(format!("tunesmith-fuzz-{target}-{seed}-{inputs}"));
            std::fs::write(&path, &input).unwrap();
            panic!("fuzz {target}: input {inputs} of seed {seed} is kept in {}", path.display());
        }
        inputs += 1;
    }
    eprintln!("fuzz {target}: {inputs} inputs");
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Values that programs stumble over, written as text.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "3",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "1000000000000",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e300",
    "-0.5",
];
/// The same as eight bytes, little end first.
const WORDS: [u64; 7] = [0, 1, 0x7f, 1 << 31, 1 << 62, 1 << 63, u64::MAX];
/// Pieces of JSON that stand where others are expected.
const PIECES: [&str; 8] = ["null", "true", "[]", "{}", "\"\"", "[[[[[[[[", "{\"a\":", "\"\\u0000\""];

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(input.len() + 1);
    let end = (at + rng.below(32)).min(input.len());
    match rng.below(9) {
        0 if at < input.len() => input[at] ^= 1 << rng.below(8),
        1 => drop(input.drain(at..end)),
        2 => {
            let copy = input[at..end].to_vec();
            for _ in 0..=rng.below(40) {
                input.splice(at..at, copy.iter().copied());
            }
        }
        3 | 4 => {
            // Another number in the place of one.
            let digit = |byte: &u8| byte.is_ascii_digit();
            let starts: Vec<usize> =
                (0..input.len()).filter(|at| digit(&input[*at]) && (*at == 0 || !digit(&input[at - 1]))).collect();
            if !starts.is_empty() {
                let start = *rng.pick(&starts);
                let length = input[start..].iter().take_while(|byte| digit(byte)).count();
                input.splice(start..start + length, rng.pick(&NUMBERS).bytes());
            }
        }
        5 => drop(input.splice(at..end, rng.pick(&PIECES).bytes())),
        6 => drop(input.splice(at..(at + 8).min(input.len()), rng.pick(&WORDS).to_le_bytes())),
        7 => {
            let other = rng.pick(seeds);
            let from = rng.below(other.len() + 1);
            input.splice(at.., other[from..].iter().copied());
        }
        _ => input.truncate(at),
    }
}

/// A fixture that the golden tests are made from.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures").join(name)
}
