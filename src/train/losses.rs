//! What a micro-batch loses, in all and record by record.

use super::StepParts;

/// The loss of a micro-batch, in nats. Two are equal when the same was computed, however long it took.
#[derive(Debug, Clone, Default)]
pub struct LossSum {
    /// Sum over all labelled tokens, or over whatever else `count` counts.
    pub loss_sum: f64,
    /// How many tokens are labelled.
    pub labelled: usize,
    /// What the mean is taken over: labelled tokens, or whatever else the objective counts (pairs, answers).
    pub count: usize,
    /// Sums over the same of what the objective measures beside the loss, in its order.
    pub metrics: Vec<f64>,
    /// The same for each record, in order: a loss that is not finite is traced to its record.
    pub records: Vec<RecordLoss>,
    /// Where the time went.
    pub parts: StepParts,
}

impl PartialEq for LossSum {
    fn eq(&self, other: &Self) -> bool {
        self.loss_sum == other.loss_sum
            && (self.labelled, self.count) == (other.labelled, other.count)
            && self.metrics == other.metrics
            && self.records == other.records
    }
}

/// The loss of one record.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RecordLoss {
    /// Sum over the record's labelled tokens.
    pub loss_sum: f64,
    /// How many of its tokens are labelled.
    pub labelled: usize,
}

impl LossSum {
    /// Of rows with these losses and labels, in records of these lengths.
    pub(super) fn of(loss_sum: f64, token_losses: &[f32], labels: &[Option<u32>], lengths: &[usize]) -> Self {
        let mut start = 0;
        let records: Vec<RecordLoss> = lengths
            .iter()
            .map(|length| {
                let range = start..start + length;
                start = range.end;
                RecordLoss {
                    loss_sum: token_losses[range.clone()].iter().map(|loss| f64::from(*loss)).sum(),
                    labelled: labels[range].iter().flatten().count(),
                }
            })
            .collect();
        let labelled = records.iter().map(|record| record.labelled).sum();
        LossSum { loss_sum, labelled, count: labelled, metrics: Vec::new(), records, parts: StepParts::default() }
    }

    /// The mean of what the objective measures over `sums`, by its names.
    pub(super) fn means(names: &'static [&'static str], sums: &[Self]) -> Vec<(&'static str, f64)> {
        let count = sums.iter().map(|sum| sum.count).sum::<usize>().max(1) as f64;
        let mean = |at: usize| sums.iter().filter_map(|sum| sum.metrics.get(at)).sum::<f64>() / count;
        names.iter().enumerate().map(|(at, name)| (*name, mean(at))).collect()
    }
}
