//! The states behind the last layer, and what an objective can ask of them.

use candle_core::Tensor;

use super::super::losses::LossSum;
use crate::error::{Error, Result};
use crate::kernels::{Gradients as Wanted, Weight, linear_cross_entropy};
use crate::tune::Trainable;

/// What an objective sees of a micro-batch.
pub struct Top<'a> {
    /// States behind the last norm, `[N, H]`: one row for every token, those of a soft prompt in front of each
    /// record's own.
    pub hidden: &'a Tensor,
    /// The output head, `[V, H]`.
    pub head: Weight,
    /// What logits are capped with.
    pub softcap: Option<f64>,
    /// For every row the token that is to follow, where that is to be learned.
    pub labels: &'a [Option<u32>],
    /// Rows of each record.
    pub lengths: &'a [usize],
    /// The number of each record in its corpus.
    pub records: &'a [usize],
    /// What trains; empty when only the loss is wanted.
    pub trainables: &'a [Trainable],
    /// Whether gradients are wanted.
    pub learns: bool,
}

/// What an objective makes of it.
#[derive(Debug, Clone)]
pub struct TopLoss {
    /// The loss.
    pub loss: LossSum,
    /// Its gradient with respect to [`Top::hidden`], where gradients are wanted and something below trains.
    pub grad_hidden: Option<Tensor>,
    /// Its gradients with respect to weights that the objective itself uses, by their place among
    /// [`Top::trainables`].
    pub grad_weights: Vec<(usize, Tensor)>,
}

impl Top<'_> {
    /// Cross entropy of the labelled rows, each times its `token_scale` (N) or 1.
    ///
    /// # Errors
    /// When a label lies outside the vocabulary, or the device fails.
    pub fn cross_entropy(&self, token_scale: Option<&[f32]>) -> Result<TopLoss> {
        let trained = |one: &Trainable| self.head.tensor().is_some_and(|tensor| tensor.id() == one.var.id());
        let head = self.trainables.iter().position(trained);
        let wanted = match head {
            _ if !self.learns => Wanted::None,
            None => Wanted::Hidden,
            Some(_) if self.trainables.len() == 1 => Wanted::Weight,
            Some(_) => Wanted::HiddenAndWeight,
        };
        let result =
            linear_cross_entropy(self.hidden, self.head.clone(), self.labels, token_scale, self.softcap, wanted)?;
        Ok(TopLoss {
            loss: LossSum::of(result.loss_sum, &result.token_losses, self.labels, self.lengths),
            grad_hidden: self.learns.then_some(result.grad_hidden),
            grad_weights: head.into_iter().zip(result.grad_weight).collect(),
        })
    }

    /// A loss over the log-probabilities of the labelled tokens. `judge` is given -ln p of every row, 0 where no
    /// label stands, and says the loss and its derivative with respect to each of these numbers; where nothing is
    /// labelled the derivative does not count.
    ///
    /// # Errors
    /// Those of `judge`; when a label lies outside the vocabulary, or the device fails.
    pub fn over_tokens(&self, judge: impl FnOnce(&[f32]) -> Result<(LossSum, Vec<f32>)>) -> Result<TopLoss> {
        let (head, softcap) = (self.head.clone(), self.softcap);
        let seen = linear_cross_entropy(self.hidden, head, self.labels, None, softcap, Wanted::None)?;
        let (loss, scale) = judge(&seen.token_losses)?;
        if !self.learns {
            return Ok(TopLoss { loss, grad_hidden: None, grad_weights: Vec::new() });
        }
        Ok(TopLoss { loss, ..self.cross_entropy(Some(&scale))? })
    }

    /// What `with` makes of the same states where every logit is divided by `temperature`.
    ///
    /// # Errors
    /// Those of `with`, and of the device.
    pub fn at_temperature(&self, temperature: f64, with: impl FnOnce(&Top<'_>) -> Result<TopLoss>) -> Result<TopLoss> {
        if temperature == 1.0 {
            return with(self);
        }
        let hidden = (self.hidden.detach() / temperature)?;
        // c·tanh(l / c) / t is the cap c / t over l / t.
        let softcap = self.softcap.map(|cap| cap / temperature);
        let made = with(&Top { hidden: &hidden, head: self.head.clone(), softcap, ..*self })?;
        let grad_hidden = made.grad_hidden.map(|gradient| gradient / temperature).transpose()?;
        Ok(TopLoss { grad_hidden, ..made })
    }

    /// Where each record's rows lie.
    pub fn rows(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.lengths.iter().scan(0, |start, length| {
            let rows = *start..*start + length;
            *start = rows.end;
            Some(rows)
        })
    }

    /// The place of the weight `name` among what trains.
    ///
    /// # Errors
    /// When there is none.
    pub fn trained(&self, name: &str) -> Result<usize> {
        let found = self.trainables.iter().position(|one| one.name == name);
        found.ok_or_else(|| Error::internal(anyhow::anyhow!("no weight {name} trains, which the objective needs")))
    }
}
