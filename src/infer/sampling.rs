//! From logits to a token: greedy, or drawn at a temperature from the most likely tokens.

use crate::error::{Error, Kind, Result};
use crate::kernels::largest;
use crate::rng::Rng;

/// The most likely tokens that are sorted at first.
const SORTED: usize = 256;

/// How the tokens of one answer are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The most tokens to produce; at least 1.
    pub max_tokens: usize,
    /// 0 always takes the most likely token; 1 draws as the model says; higher is wilder.
    pub temperature: f32,
    /// Draw only from the fewest tokens that hold this share of probability.
    pub top_p: f32,
    /// Draw only from this many tokens.
    pub top_k: Option<usize>,
    /// Decides the draws.
    pub seed: u64,
}

/// Draws the tokens of one answer. The same options and logits give the same tokens.
#[derive(Debug)]
pub(super) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    rng: Rng,
}

impl Sampler {
    pub(super) fn new(sampling: &Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k.unwrap_or(usize::MAX),
            rng: Rng::new(sampling.seed, "sampling", 0),
        }
    }

    /// ln of the probability that the model gives `token` at this temperature among all tokens, also among
    /// those that are never drawn; at temperature 0, as the model says it.
    pub(super) fn log_probability(&self, logits: &[f32], token: u32) -> f32 {
        let inverse = if self.temperature > 0.0 { f64::from(self.temperature).recip() } else { 1.0 };
        let highest = largest(logits);
        let scaled = |logit: f32| (f64::from(logit) - f64::from(highest)) * inverse;
        let sum: f64 = logits.iter().map(|logit| scaled(*logit).exp()).sum();
        (scaled(logits[token as usize]) - sum.ln()) as f32
    }

    /// The next token: the most likely one at temperature 0 (the lowest id among equals), else one
    /// drawn from the `top_k` most likely, of those from the fewest that hold `top_p` together.
    pub(super) fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        // All are looked at: to stop at the first would be one at a time.
        if logits.iter().fold(false, |nan, logit| nan | logit.is_nan()) {
            return Err(Error::new(Kind::Model, "the model produced values that are not numbers"));
        }
        if self.temperature <= 0.0 || self.top_k == 1 {
            return Ok(most_likely(logits));
        }
        if self.top_k >= logits.len() && self.top_p >= 1.0 {
            return Ok(self.pick_of_all(logits));
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let kept = self.top_k.clamp(1, order.len());
        if kept < order.len() {
            order.select_nth_unstable_by(kept - 1, by_logit);
            order.truncate(kept);
        }
        let highest = f64::from(order.iter().map(|id| logits[*id as usize]).fold(f32::NEG_INFINITY, f32::max));
        let weight = |id: &u32| ((f64::from(logits[*id as usize]) - highest) / f64::from(self.temperature)).exp();
        let enough = order.iter().map(weight).sum::<f64>() * f64::from(self.top_p);
        // To sort a whole vocabulary for every token costs more than to make its logits: few tokens hold the share.
        let mut sorted = SORTED.min(order.len());
        let weights = loop {
            if sorted < order.len() {
                order.select_nth_unstable_by(sorted - 1, by_logit);
            }
            order[..sorted].sort_unstable_by(by_logit);
            let mut sum = 0.0;
            let some = order[..sorted].iter().map(weight).take_while(|weight| {
                let more = sum < enough;
                sum += weight;
                more
            });
            let mut some: Vec<f64> = some.collect();
            if some.is_empty() {
                some.push(weight(&order[0]));
            }
            if sum >= enough || sorted == order.len() {
                break some;
            }
            sorted = (8 * sorted).min(order.len());
        };

        let mut left = f64::from(self.rng.uniform()) * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        Ok(order[drawn.unwrap_or(weights.len() - 1)])
    }
}

impl Sampler {
    /// A draw from all tokens, for which none has to be sorted.
    fn pick_of_all(&mut self, logits: &[f32]) -> u32 {
        let highest = f64::from(largest(logits));
        let weight = |logit: &f32| ((f64::from(*logit) - highest) / f64::from(self.temperature)).exp();
        let weights: Vec<f64> = logits.iter().map(weight).collect();
        let mut left = f64::from(self.rng.uniform()) * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a little over at the end.
        drawn.map_or_else(|| most_likely(logits), |token| token as u32)
    }
}

/// The lowest id among those with the highest logit, of which none is NaN: first the chunk that it is in, for which
/// vector registers hold many at a time.
fn most_likely(logits: &[f32]) -> u32 {
    const CHUNK: usize = 512;
    let (mut first, mut most) = (0, f32::NEG_INFINITY);
    for (chunk, logits) in logits.chunks(CHUNK).enumerate() {
        let largest = largest(logits);
        if largest > most {
            (first, most) = (chunk * CHUNK, largest);
        }
    }
    let within = logits[first..].iter().position(|logit| *logit == most);
    (first + within.unwrap_or_default()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn() -> Sampling {
        Sampling { max_tokens: 1, temperature: 1.0, top_p: 1.0, top_k: None, seed: 0 }
    }

    fn shares(options: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(&options);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.pick(logits).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[track_caller]
    fn assert_near(got: &[f64], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 0.015), "{got:?}, expected {want:?}");
    }

    /// Probabilities 0.1, 0.2, 0.3, 0.4.
    fn tenths() -> Vec<f32> {
        [0.1f32, 0.2, 0.3, 0.4].map(f32::ln).to_vec()
    }

    #[test]
    fn tokens_come_as_often_as_the_distribution_says() {
        assert_near(&shares(drawn(), &tenths()), &[0.1, 0.2, 0.3, 0.4]);
        // At half the temperature probabilities are squared: 1, 4, 9, 16 of 30.
        let colder = Sampling { temperature: 0.5, ..drawn() };
        assert_near(&shares(colder, &tenths()), &[1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]);
    }

    #[test]
    fn the_most_likely_is_the_lowest_id_among_equals_wherever_it_stands() {
        for length in [1, 15, 16, 17, 511, 512, 513, 3000] {
            for place in [0, length / 3, length - 1] {
                let mut logits: Vec<f32> = (0..length).map(|id| -1.0 - (id % 7) as f32).collect();
                logits[place..].fill(2.0);
                assert_eq!(most_likely(&logits), place as u32, "{length} {place}");
                logits[place] = 3.0;
                assert_eq!(most_likely(&logits), place as u32, "{length} {place}");
            }
            assert_eq!(most_likely(&vec![f32::NEG_INFINITY; length]), 0);
        }
        let mut logits = vec![0.0; 1000];
        logits[999] = f32::NAN;
        assert!(Sampler::new(&Sampling { temperature: 0.0, ..drawn() }).pick(&logits).is_err());
    }

    #[test]
    fn top_k_and_top_p_leave_only_the_most_likely() {
        let base = drawn();
        let two = Sampling { top_k: Some(2), ..base };
        assert_near(&shares(two, &tenths()), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        let half = Sampling { top_p: 0.5, ..base };
        assert_near(&shares(half, &tenths()), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        let least = Sampling { top_p: 0.0, ..base };
        assert_near(&shares(least, &tenths()), &[0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn of_a_large_vocabulary_the_tokens_are_drawn_that_a_full_sort_gives() {
        // A few likely ones, and so even a distribution that most of it is needed.
        for spread in [4.0, 0.01] {
            let logits: Vec<f32> = Rng::new(3, "logits", 0).normals(5000, spread);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            let weight = |id: &usize| f64::from(logits[*id] - logits[order[0]]).exp();
            let total: f64 = order.iter().map(weight).sum();
            let mut held = 0.0;
            let mut kept: Vec<(usize, f64)> = Vec::new();
            for id in &order {
                if held >= 0.9 * total {
                    break;
                }
                held += weight(id);
                kept.push((*id, weight(id)));
            }
            let mut sampler = Sampler::new(&Sampling { top_p: 0.9, ..drawn() });
            let mut same = Rng::new(0, "sampling", 0);
            for _ in 0..200 {
                let left = f64::from(same.uniform()) * held;
                let mut sum = 0.0;
                let place = kept.iter().position(|(_, weight)| {
                    sum += weight;
                    left < sum
                });
                assert_eq!(sampler.pick(&logits).unwrap() as usize, kept[place.unwrap_or(kept.len() - 1)].0);
            }
        }
    }

    #[test]
    fn greedy_takes_the_highest_and_the_first_of_equals() {
        let mut sampler = Sampler::new(&Sampling { temperature: 0.0, ..drawn() });
        assert_eq!(sampler.pick(&[0.0, 2.0, 2.0, f32::NEG_INFINITY]).unwrap(), 1);
        assert_eq!(sampler.pick(&[0.0, f32::NAN]).unwrap_err().kind(), Kind::Model);
    }

    #[test]
    fn the_seed_decides() {
        let draw = |seed| {
            let mut sampler = Sampler::new(&Sampling { seed, ..drawn() });
            (0..20).map(|_| sampler.pick(&tenths()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn a_tokens_log_probability_is_that_of_the_whole_distribution_at_the_temperature() {
        let sampler = |temperature| Sampler::new(&Sampling { temperature, top_k: Some(1), ..drawn() });
        assert!((sampler(1.0).log_probability(&tenths(), 2) - 0.3f32.ln()).abs() < 1e-6);
        assert!((sampler(0.0).log_probability(&tenths(), 2) - 0.3f32.ln()).abs() < 1e-6);
        assert!((sampler(0.5).log_probability(&tenths(), 2) - (9.0f32 / 30.0).ln()).abs() < 1e-6);
    }
}
