//! Graders for reinforcement fine-tuning: what is built in ([`Spec`], in the JSON that OpenAI's graders are
//! written in), a reward model, and a function behind the Lambda invocation API ([`Lambda`]).

mod built_in;
mod formula;
mod lambda;
mod reward_model;
mod similarity;
mod spec;
mod template;

pub use built_in::BuiltIn;
pub use lambda::{Lambda, LambdaEndpoint};
pub use reward_model::RewardModel;
pub use spec::{MAX_GRADER_BYTES, Metric, Operation, Spec};
