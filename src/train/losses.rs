//! What a micro-batch loses, in all and record by record.

use super::StepParts;

/// The loss of a micro-batch, in nats. Two are equal when the same was computed, however long it took.
#[derive(Debug, Clone, Default)]
pub struct LossSum {
    /// Sum over all labelled tokens.
    pub loss_sum: f64,
    /// How many tokens are labelled.
    pub labelled: usize,
    /// The same for each record, in order: a loss that is not finite is traced to its record.
    pub records: Vec<RecordLoss>,
    /// Where the time went.
    pub parts: StepParts,
}

impl PartialEq for LossSum {
    fn eq(&self, other: &Self) -> bool {
        self.loss_sum == other.loss_sum && self.labelled == other.labelled && self.records == other.records
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
        LossSum { loss_sum, labelled, records, parts: StepParts::default() }
    }
}
