//! The learning rate's course: a linear rise over the warm-up, then linear or cosine fall to zero, or
//! none. The formulas are those of `transformers.optimization.get_{linear,cosine,constant}_schedule_with_warmup`.

use super::settings::Schedule;

impl Schedule {
    /// What the highest learning rate is multiplied with at `step` (from 0) of `steps`.
    pub(crate) fn factor(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Linear => (1.0 - done).max(0.0),
            Self::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * done).cos())).max(0.0),
            Self::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(schedule: Schedule, expected: [f64; 12]) {
        for (step, expected) in (0..).zip(expected) {
            let factor = schedule.factor(step, 3, 10);
            assert!((factor - expected).abs() < 1e-12, "{schedule:?} at {step}: {factor}, expected {expected}");
        }
    }

    /// Values printed by transformers 4.57.6 for 3 warm-up steps of 10.
    #[test]
    fn the_factors_are_those_of_transformers() {
        let third = 1.0 / 3.0;
        let rise = [0.0, third, 2.0 * third];
        assert_close(
            Schedule::Linear,
            [
                rise[0],
                rise[1],
                rise[2],
                1.0,
                0.857_142_857_142_857_1,
                0.714_285_714_285_714_3,
                0.571_428_571_428_571_4,
                0.428_571_428_571_428_55,
                0.285_714_285_714_285_7,
                0.142_857_142_857_142_85,
                0.0,
                0.0,
            ],
        );
        assert_close(
            Schedule::Cosine,
            [
                rise[0],
                rise[1],
                rise[2],
                1.0,
                0.950_484_433_951_209_6,
                0.811_744_900_929_366_7,
                0.611_260_466_978_157_2,
                0.388_739_533_021_842_83,
                0.188_255_099_070_633_34,
                0.049_515_566_048_790_48,
                0.0,
                0.049_515_566_048_790_37,
            ],
        );
        assert_close(Schedule::Constant, [rise[0], rise[1], rise[2], 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_rises() {
        assert_eq!(Schedule::Linear.factor(1, 4, 2), 0.25);
        assert_eq!(Schedule::Cosine.factor(0, 0, 1), 1.0);
    }
}
