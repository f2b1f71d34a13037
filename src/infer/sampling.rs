//! From logits to a token: greedy, or drawn at a temperature from the most likely tokens.

use crate::error::{Error, Kind, Result};
use crate::rng::Rng;

use super::generate::Options;

/// Draws the tokens of one answer. The same options and logits give the same tokens.
pub(super) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    rng: Rng,
}

impl Sampler {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k.unwrap_or(usize::MAX),
            rng: Rng::new(options.seed, "sampling", 0),
        }
    }

    /// The next token: the most likely one at temperature 0 (the lowest id among equals), else one
    /// drawn from the `top_k` most likely, of those from the fewest that hold `top_p` together.
    pub(super) fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::new(Kind::Model, "the model produced values that are not numbers"));
        }
        if self.temperature <= 0.0 || self.top_k == 1 {
            return Ok(most_likely(logits));
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let kept = self.top_k.clamp(1, order.len());
        if kept < order.len() {
            order.select_nth_unstable_by(kept - 1, by_logit);
            order.truncate(kept);
        }
        order.sort_unstable_by(by_logit);

        let highest = f64::from(logits[order[0] as usize]);
        let weight = |id: &u32| ((f64::from(logits[*id as usize]) - highest) / f64::from(self.temperature)).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let enough = weights.iter().sum::<f64>() * f64::from(self.top_p);
        let mut sum = 0.0;
        let count = weights.iter().take_while(|weight| {
            let more = sum < enough;
            sum += **weight;
            more
        });
        let count = count.count().max(1);
        weights.truncate(count);

        let mut left = f64::from(self.rng.uniform()) * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        Ok(order[drawn.unwrap_or(count - 1)])
    }
}

fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(options: Options, logits: &[f32]) -> Vec<f64> {
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
        let drawn = Options { temperature: 1.0, top_p: 1.0, ..Default::default() };
        assert_near(&shares(drawn.clone(), &tenths()), &[0.1, 0.2, 0.3, 0.4]);
        // At half the temperature probabilities are squared: 1, 4, 9, 16 of 30.
        let colder = Options { temperature: 0.5, ..drawn };
        assert_near(&shares(colder, &tenths()), &[1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]);
    }

    #[test]
    fn top_k_and_top_p_leave_only_the_most_likely() {
        let base = Options { temperature: 1.0, top_p: 1.0, ..Default::default() };
        let two = Options { top_k: Some(2), ..base.clone() };
        assert_near(&shares(two, &tenths()), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        let half = Options { top_p: 0.5, ..base.clone() };
        assert_near(&shares(half, &tenths()), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        let least = Options { top_p: 0.0, ..base };
        assert_near(&shares(least, &tenths()), &[0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn greedy_takes_the_highest_and_the_first_of_equals() {
        let mut sampler = Sampler::new(&Options { temperature: 0.0, ..Default::default() });
        assert_eq!(sampler.pick(&[0.0, 2.0, 2.0, f32::NEG_INFINITY]).unwrap(), 1);
        assert_eq!(sampler.pick(&[0.0, f32::NAN]).unwrap_err().kind(), Kind::Model);
    }

    #[test]
    fn the_seed_decides() {
        let draw = |seed| {
            let mut sampler = Sampler::new(&Options { temperature: 1.0, seed, ..Default::default() });
            (0..20).map(|_| sampler.pick(&tenths()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
