//! The states of a job and of its sub-tasks, and which may follow which.

use crate::clock::Millis;
use crate::store::{Status, Task, TaskStatus, Tasks};

/// A `failureMessage` holds at most this many characters.
const FAILURE_MESSAGE_LIMIT: usize = 2048;

impl Status {
    /// Whether nothing follows.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Stopped)
    }

    /// Whether a job in this state may next be in `next`. A job that is being stopped never completes:
    /// the caller was told that no model comes out.
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::InProgress, Self::Completed | Self::Failed | Self::Stopping | Self::Stopped)
                | (Self::Stopping, Self::Stopped)
        )
    }
}

/// The sub-tasks of a job, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Every record of the data set is checked.
    Validation,
    /// Text becomes token batches.
    DataProcessing,
    /// The model learns, and the result is published.
    Training,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Validation, Self::DataProcessing, Self::Training];
}

impl Tasks {
    fn of(&mut self, stage: Stage) -> &mut Task {
        match stage {
            Stage::Validation => &mut self.validation,
            Stage::DataProcessing => &mut self.data_processing,
            Stage::Training => &mut self.training,
        }
    }

    /// The job has come to `stage`: what is before it is done, what is after it not begun. A later
    /// attempt that comes here again leaves the times of the first.
    pub fn reach(&mut self, stage: Stage, now: Millis) {
        for each in Stage::ALL {
            let (task, status) = match each.cmp(&stage) {
                std::cmp::Ordering::Less => (self.of(each), TaskStatus::Completed),
                std::cmp::Ordering::Equal => (self.of(each), TaskStatus::InProgress),
                std::cmp::Ordering::Greater => (self.of(each), TaskStatus::NotStarted),
            };
            // Work already done is not undone by another attempt that walks past it.
            if task.status == status || task.status == TaskStatus::Completed {
                continue;
            }
            task.status = status;
            if status != TaskStatus::NotStarted {
                task.creation_time.get_or_insert(now);
                task.last_modified_time = Some(now);
            }
        }
    }

    /// The job has ended: what was under way ends with it.
    pub fn end(&mut self, status: Status, now: Millis) {
        for stage in Stage::ALL {
            let task = self.of(stage);
            let ended = match status {
                Status::Completed => TaskStatus::Completed,
                _ if task.status != TaskStatus::InProgress => continue,
                Status::Failed => TaskStatus::Failed,
                Status::Stopped => TaskStatus::Stopped,
                Status::Stopping => TaskStatus::Stopping,
                Status::InProgress => continue,
            };
            if task.status != ended {
                task.status = ended;
                task.creation_time.get_or_insert(now);
                task.last_modified_time = Some(now);
            }
        }
    }

    /// The sub-tasks as a caller should see them while the job is in `status`: a job may be stopped, or
    /// ended by the sweep, while no worker is there to say so of its sub-tasks.
    #[must_use]
    pub fn shown(mut self, status: Status, last_modified: Millis) -> Self {
        self.end(status, last_modified);
        self
    }
}

/// A message cut to what `failureMessage` may hold.
pub fn failure_message(message: &str) -> String {
    if message.chars().count() <= FAILURE_MESSAGE_LIMIT {
        return message.to_string();
    }
    let mut cut: String = message.chars().take(FAILURE_MESSAGE_LIMIT - 1).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::{Completed, Failed, InProgress, Stopped, Stopping};

    #[test]
    fn only_the_moves_of_the_contract_are_possible() {
        let possible = [
            (InProgress, Completed),
            (InProgress, Failed),
            (InProgress, Stopping),
            (InProgress, Stopped),
            (Stopping, Stopped),
        ];
        for &from in Status::ALL {
            for &to in Status::ALL {
                assert_eq!(from.may_become(to), possible.contains(&(from, to)), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn nothing_follows_an_end_and_something_follows_everything_else() {
        for &status in Status::ALL {
            assert_eq!(status.is_end(), Status::ALL.iter().all(|&next| !status.may_become(next)), "{status}");
        }
    }

    #[test]
    fn names_survive_the_database() {
        for &status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        assert_eq!(Status::parse("Queued"), None);
    }

    #[test]
    fn sub_tasks_run_in_order_and_keep_their_first_times() {
        let mut tasks = Tasks::default();
        tasks.reach(Stage::Validation, 10);
        tasks.reach(Stage::Training, 20);
        assert_eq!(tasks.validation.status, TaskStatus::Completed);
        assert_eq!(tasks.validation.creation_time, Some(10));
        assert_eq!(tasks.validation.last_modified_time, Some(20));
        assert_eq!(tasks.training.status, TaskStatus::InProgress);

        // A second attempt walks through the stages again.
        tasks.reach(Stage::Validation, 30);
        assert_eq!(tasks.validation.status, TaskStatus::Completed);
        assert_eq!(tasks.validation.last_modified_time, Some(20));

        tasks.end(Completed, 40);
        assert!(
            [tasks.validation, tasks.data_processing, tasks.training]
                .iter()
                .all(|task| task.status == TaskStatus::Completed && task.creation_time.is_some())
        );
    }

    #[test]
    fn a_failure_is_put_down_to_the_sub_task_under_way() {
        let mut tasks = Tasks::default();
        tasks.reach(Stage::DataProcessing, 10);
        let shown = tasks.shown(Failed, 20);
        assert_eq!(shown.validation.status, TaskStatus::Completed);
        assert_eq!(shown.data_processing.status, TaskStatus::Failed);
        assert_eq!(shown.training, Task::default());
        assert_eq!(tasks.shown(Stopping, 20).data_processing.status, TaskStatus::Stopping);
    }

    #[test]
    fn a_long_failure_is_cut_at_a_character() {
        let message = failure_message(&"ä".repeat(3000));
        assert_eq!(message.chars().count(), 2048);
        assert!(message.ends_with('…'));
        assert_eq!(failure_message("short"), "short");
    }
}
