//! Runs the recipe on a thread of its own, while the reporter shows how far it is. A panic in there ends
//! the attempt, not the service.

use std::panic::AssertUnwindSafe;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::super::observer::{News, Observer};
use super::super::reporter;
use super::super::run::Attempt;
use super::prepare::checkpoints;
use crate::error::{Error, Result, panic_message};
use crate::train::{self, Grader, Outcome, Plan, Summary};

/// Autograd recurses once per operation; the pages of a stack that are never touched cost nothing.
const STACK_BYTES: usize = 512 << 20;

/// How the recipe ended.
pub(crate) enum Trained {
    /// The outputs lie in the work folder.
    Completed(Summary),
    /// It was told to end, and left a checkpoint.
    Interrupted,
    /// It panicked with this message.
    Crashed(String),
}

/// Trains by `plan`; with a grader, by what it says of sampled answers.
pub(crate) async fn train(attempt: &Attempt, plan: Plan, grader: Option<Box<dyn Grader>>) -> Result<Trained> {
    let news = watch::Sender::new(News::default());
    let observer = Observer {
        claim: attempt.claim.clone(),
        checkpoints: checkpoints(attempt),
        news: news.clone(),
        runtime: Handle::current(),
    };
    let output = plan.output();
    let flag = attempt.halt.flag().clone();
    let ended = on_own_thread(move || {
        let mut observer = observer;
        match grader {
            Some(grader) => train::reinforce(&plan, &*grader, &mut observer, &flag),
            None => train::run(&plan, &mut observer, &flag),
        }
    })?;

    let metrics = reporter::metrics(&attempt.claim, &attempt.objects, &attempt.layout, &output, &attempt.halt);
    let progress = reporter::progress(&attempt.claim, &news);
    let watching = async {
        tokio::join!(metrics, progress);
    };
    let outcome = tokio::select! {
        outcome = ended => outcome.map_err(Error::internal)?,
        () = watching => return Err(Error::internal(anyhow::anyhow!("the reporter ended before the trainer"))),
    };
    reporter::last_words(&attempt.claim, &news).await;
    match outcome {
        Ok(Ok(Outcome::Completed(summary))) => Ok(Trained::Completed(summary)),
        Ok(Ok(Outcome::Interrupted)) => Ok(Trained::Interrupted),
        Ok(Err(error)) => Err(error),
        Err(panic) => Ok(Trained::Crashed(panic)),
    }
}

/// Runs `work` on a new thread with a large stack; a panic comes back as its message.
fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<std::result::Result<T, String>>> {
    let (send, ended) = oneshot::channel();
    std::thread::Builder::new().name("trainer".into()).stack_size(STACK_BYTES).spawn(move || {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_message(&*panic));
        // Nobody waits when the service is going down without patience.
        let _ = send.send(outcome);
    })?;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_attempt_and_not_the_service() {
        let ended = on_own_thread(|| -> u32 { panic!("step {}", 7) }).unwrap();
        assert_eq!(ended.await.unwrap(), Err("step 7".to_string()));
        let ended = on_own_thread(|| 7).unwrap();
        assert_eq!(ended.await.unwrap(), Ok(7));
    }
}
