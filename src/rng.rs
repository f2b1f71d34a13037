//! Random numbers that are a function of (seed, stream, step) and nothing else: Philox4x32-10
//! (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A resumed run draws what
//! the uninterrupted one would have drawn, because there is no hidden state to save.

use rayon::prelude::*;

/// Values that one thread draws at a time; a multiple of a block's four.
const CHUNK: usize = 1 << 16;

/// One sequence of draws. Two generators made with the same three values give the same numbers on
/// every machine; any other triple gives numbers that have nothing to do with them.
#[derive(Debug, Clone)]
pub struct Rng {
    key: [u32; 2],
    /// High half of the 128-bit counter.
    step: u64,
    /// Low half of the counter: which block of four words comes next.
    block: u64,
    words: [u32; 4],
    /// How many of `words` have been given out.
    used: usize,
    /// The second value of the last Box–Muller pair.
    spare: Option<f32>,
}

impl Rng {
    /// The sequence named `stream` (for example `"shuffle"`, or a weight's name) at `step` of the
    /// run with this `seed`.
    pub fn new(seed: u64, stream: &str, step: u64) -> Self {
        let key = mix(seed ^ mix(fnv1a(stream)));
        Self { key: [key as u32, (key >> 32) as u32], step, block: 0, words: [0; 4], used: 4, spare: None }
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        if self.used == 4 {
            let counter = [self.block as u32, (self.block >> 32) as u32, self.step as u32, (self.step >> 32) as u32];
            self.words = philox(counter, self.key);
            self.block += 1;
            self.used = 0;
        }
        let word = self.words[self.used];
        self.used += 1;
        word
    }

    /// 64 random bits.
    pub fn bits64(&mut self) -> u64 {
        (u64::from(self.bits()) << 32) | u64::from(self.bits())
    }

    /// A value in `[0, 1)`, one of 2²⁴ equally likely ones.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// A value from the normal distribution with mean 0 and variance 1 (Box–Muller).
    pub fn normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - f64::from(self.uniform())).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.uniform());
        self.spare = Some((radius * angle.sin()) as f32);
        (radius * angle.cos()) as f32
    }

    /// One of `0..bound`, all equally likely; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // Values from the largest multiple of `bound` upwards would favour small remainders: draw again.
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let value = self.bits64();
            if value < limit {
                return value % bound;
            }
        }
    }

    /// `0..n` in random order (Fisher–Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }

    /// `n` values spread evenly over `[low, high)`.
    pub fn uniforms(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| low + (high - low) * self.uniform()).collect()
    }

    /// `n` normal values with mean 0 and this standard deviation.
    pub fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        let mut values = vec![0f32; n];
        let fill = |rng: &mut Self, values: &mut [f32]| values.iter_mut().for_each(|v| *v = deviation * rng.normal());
        if self.used < self.words.len() || self.spare.is_some() {
            fill(self, &mut values);
            return values;
        }
        // At the edge of a block any place of the sequence can be drawn at once: four values from every block.
        let blocks_before = |at: usize| (at / self.words.len()) as u64;
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(index, values)| {
            let mut own = Self { block: self.block + blocks_before(index * CHUNK), ..self.clone() };
            fill(&mut own, values);
        });
        self.block += blocks_before(n);
        for _ in 0..n % self.words.len() {
            self.normal();
        }
        values
    }
}

/// The first 64 bits of a sequence: a key to hand to something that draws by itself, such as a
/// dropout mask.
pub fn key(seed: u64, stream: &str, step: u64) -> u64 {
    Rng::new(seed, stream, step).bits64()
}

/// Philox4x32 with ten rounds.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(counter[0]) * 0xD251_1F53;
        let high = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// FNV-1a, 64 bits: turns a stream's name into a number.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit,
/// so neighbouring values get results that have nothing in common.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_normals_at_once_are_those_drawn_one_by_one_and_so_is_what_follows() {
        for n in [0, 1, 5, CHUNK - 1, 2 * CHUNK + 3] {
            let (mut one_by_one, mut at_once) = (Rng::new(3, "normals", 1), Rng::new(3, "normals", 1));
            let expected: Vec<f32> = (0..n).map(|_| 0.5 * one_by_one.normal()).collect();
            assert_eq!(at_once.normals(n, 0.5), expected, "{n}");
            // Wherever the first draw left off.
            assert_eq!(at_once.normals(7, 1.0), (0..7).map(|_| one_by_one.normal()).collect::<Vec<_>>());
            assert_eq!(at_once.bits64(), one_by_one.bits64());
        }
    }

    /// From the known-answer file of the authors' library, Random123 (`kat_vectors`).
    #[test]
    fn philox_gives_its_authors_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn the_same_three_values_give_the_same_numbers_and_any_other_gives_others() {
        let draw = |seed, stream, step| Rng::new(seed, stream, step).bits64();
        assert_eq!(draw(1, "a", 2), draw(1, "a", 2));
        let others = [draw(1, "a", 2), draw(2, "a", 2), draw(1, "b", 2), draw(1, "a", 3)];
        for (i, a) in others.iter().enumerate() {
            assert!(others[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut rng = Rng::new(5, "moments", 0);
        let n = 100_000;
        let moments = |values: &[f32]| {
            let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, variance)
        };
        let (mean, variance) = moments(&rng.uniforms(n, -1.0, 1.0));
        assert!(mean.abs() < 0.01 && (variance - 1.0 / 3.0).abs() < 0.01, "{mean} {variance}");
        let (mean, variance) = moments(&rng.normals(n, 2.0));
        assert!(mean.abs() < 0.03 && (variance - 4.0).abs() < 0.08, "{mean} {variance}");
        let mut counts = [0usize; 7];
        for _ in 0..n {
            counts[rng.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(n / 7) < 600), "{counts:?}");
    }

    #[test]
    fn a_permutation_holds_every_index_once_and_moves_them() {
        let order = Rng::new(3, "shuffle", 1).permutation(1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert!(order.iter().enumerate().filter(|(i, v)| i == *v).count() < 10);
        assert!(Rng::new(3, "shuffle", 1).permutation(0).is_empty());
    }
}
