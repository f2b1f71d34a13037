//! Who says how good an answer is. A run is given one, as it is given its [`super::Observer`]: it knows no
//! HTTP and no database.

use serde_json::{Map, Value};

use super::StopFlag;
use crate::error::Result;

/// One sampled answer, to be graded.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Names it among the samples of one call.
    pub id: &'a str,
    /// The conversation with the sampled answer as its last turn: `{"role", "content"}` each.
    pub messages: &'a [Value],
    /// The answer alone.
    pub output: &'a str,
    /// What the prompt's record holds beside `messages`: `reference_answer` and whatever else its author put there.
    pub item: &'a Map<String, Value>,
}

/// How good one sample is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grade {
    /// What the policy is to make large. Finite.
    pub reward: f64,
    /// What it is made of, by name.
    pub parts: Vec<(String, f64)>,
}

/// What came of one sample: its grade, or why there is none.
pub type Graded = std::result::Result<Grade, String>;

/// Grades samples. Blocks; a run calls it from its own thread.
pub trait Grader: Send + Sync {
    /// The names of the parts that every grade has, for columns of their own; none where they are not known before.
    fn parts(&self) -> Vec<String> {
        Vec::new()
    }

    /// The grades of `samples`, in their order. What fails is tried again inside, as far as that makes sense, and
    /// then told sample by sample. The same samples must get the same grades, or a resumed run differs.
    ///
    /// # Errors
    /// When nothing can be graded at all and nothing would change that, or the run was asked to stop.
    fn grade(&self, samples: &[Sample<'_>], stop: &StopFlag) -> Result<Vec<Graded>>;
}
