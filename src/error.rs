//! What went wrong, with two faces: the sentence the caller may read, and the chain of causes
//! that only the log gets. The kinds are Bedrock's exceptions; `http::reply` turns a kind into a
//! status and an `x-amzn-errortype`, so nothing below `http` knows about HTTP.

use std::fmt;
use std::io::ErrorKind;

/// Shorthand used by every module above the kernels.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bedrock's exception names (contract: service model of `bedrock` and `bedrock-runtime`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request or the data is wrong and the caller can mend it.
    Validation,
    /// No key, a wrong key, or a key that may not do this.
    AccessDenied,
    /// There is no such thing, or it belongs to someone else: the same answer for both.
    NotFound,
    /// The state of the resource does not allow this now.
    Conflict,
    /// An account limit was reached.
    QuotaExceeded,
    /// A resource would carry more than fifty tags.
    TooManyTags,
    /// Come back later: a limit on rate or on work in flight.
    Throttling,
    /// A dependency (database, object store) is away; the request may be repeated.
    Unavailable,
    /// Our fault. The caller learns nothing but the request id.
    Internal,
    /// The model could not produce an answer.
    Model,
    /// The model took too long.
    ModelTimeout,
    /// The model is being loaded.
    ModelNotReady,
}

/// An error with a message for the caller and, optionally, a cause for the log.
pub struct Error {
    kind: Kind,
    message: String,
    resource: Option<String>,
    cause: Option<anyhow::Error>,
}

/// Whether a disk is full, or somebody's share of it: something has to be removed, waiting frees no space.
pub(crate) fn is_full(cause: &std::io::Error) -> bool {
    matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The text of a panic that was caught.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}

impl Error {
    /// An error of `kind` whose `message` the caller may read.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), resource: None, cause: None }
    }

    /// The request or the data is wrong; `message` says what to change.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(Kind::Validation, message)
    }

    /// No such resource.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Our fault: `cause` goes to the log, the caller gets Bedrock's neutral sentence.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            kind: Kind::Internal,
            message: "Encountered an unexpected error when processing the request, please try again".into(),
            resource: None,
            cause: Some(cause.into()),
        }
    }

    /// A dependency is away: `cause` goes to the log.
    pub fn unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            kind: Kind::Unavailable,
            message: "The service is temporarily unable to handle the request, please try again".into(),
            resource: None,
            cause: Some(cause.into()),
        }
    }

    /// Names the resource it is about (`resourceName` in the reply).
    #[must_use]
    pub fn about(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// Adds what the log should know; the caller's message stays.
    #[must_use]
    pub fn because(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The same error once more, for another who waited for what failed.
    #[must_use]
    pub fn repeated(&self) -> Self {
        let again = Self::new(self.kind, self.message.clone());
        match &self.cause {
            Some(cause) => again.because(anyhow::anyhow!("{cause:#}")),
            None => again,
        }
    }

    /// Says in the log where it happened; the caller's message stays.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display + Send + Sync + 'static) -> Self {
        let place = place.to_string();
        self.cause = Some(match self.cause.take() {
            Some(cause) => cause.context(place),
            None => anyhow::anyhow!(place),
        });
        self
    }

    /// Whether a device had no memory left: the same work in smaller pieces may fit.
    pub fn is_out_of_memory(&self) -> bool {
        // The names that CUDA's driver and cuBLAS give it; candle passes them on inside a message.
        const NAMES: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
        let named = |cause: &dyn fmt::Display| NAMES.iter().any(|name| cause.to_string().contains(name));
        self.cause.as_ref().is_some_and(|cause| cause.chain().any(|one| named(&one)))
    }

    /// Whether a disk is full, or somebody's share of it: to wait frees no space.
    pub fn is_storage_full(&self) -> bool {
        // Some libraries pass the operating system's error on as a text; the numbers are Linux's ENOSPC and EDQUOT.
        const NUMBERS: [&str; 2] = ["(os error 28)", "(os error 122)"];
        let full = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<std::io::Error>().is_some_and(is_full)
                || NUMBERS.iter().any(|number| cause.to_string().contains(number))
        };
        self.cause.as_ref().is_some_and(|cause| cause.chain().any(full))
    }

    /// Which of Bedrock's exceptions this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The caller's face.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The resource it is about, where the service model has a member for it.
    pub fn resource(&self) -> Option<&str> {
        self.resource.as_deref()
    }

    /// The cause, which only the log and a person at the service's own terminal may read.
    pub fn cause(&self) -> Option<String> {
        self.cause.as_ref().map(|cause| format!("{cause:#}"))
    }

    /// The log's face: message and the whole chain of causes.
    pub fn log(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{:?}: {}: {cause:#}", self.kind, self.message),
            None => format!("{:?}: {}", self.kind, self.message),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.log())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

macro_rules! internal_from {
    ($($cause:ty),* $(,)?) => {$(
        impl From<$cause> for Error {
            fn from(cause: $cause) -> Self {
                Self::internal(cause)
            }
        }
    )*};
}

internal_from!(candle_core::Error, std::io::Error, serde_json::Error, anyhow::Error, safetensors::SafeTensorError);

impl From<sqlx::Error> for Error {
    fn from(cause: sqlx::Error) -> Self {
        match cause {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_)
            | sqlx::Error::Tls(_) => Self::unavailable(cause),
            sqlx::Error::Database(ref inner) if !inner.code().is_some_and(|code| is_permanent(&code)) => {
                Self::unavailable(cause)
            }
            // Postgres: a character that its text cannot hold, U+0000. Whatever sent it, sending it again is no use.
            sqlx::Error::Database(ref inner) if inner.code().is_some_and(|code| code == "22021") => {
                Self::validation("The request holds the character U+0000, which no field allows").because(cause)
            }
            _ => Self::internal(cause),
        }
    }
}

/// Whether a database will say the same again: the statement or its values are wrong. Every other state passes, such as
/// a rival transaction, a lock that was not had in time, a server that is shut down, read-only or full.
fn is_permanent(code: &str) -> bool {
    // SQLite's codes are numbers of at most four digits; the low byte says what kind.
    if code.len() < 5 {
        // Error, internal, permission, corrupt, too big, constraint, mismatch, misuse, authorization, range, no database.
        return code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 1..=3 | 11 | 18..=21 | 23 | 25 | 26));
    }
    // Postgres: unsupported, cardinality, bad value, constraint, authorization, unknown database, syntax or unknown name.
    let classes = ["0A", "21", "22", "23", "28", "3D", "3F", "42", "44"];
    classes.iter().any(|class| code.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_says_something_unknown_is_asked_again_and_a_wrong_statement_is_not() {
        for passing in [
            "40001", "40P01", "55P03", "57014", "57P01", "53100", "08006", "25006", "58030", "5", "261", "13", "10",
            "778", "8",
        ] {
            assert!(!is_permanent(passing), "{passing}");
        }
        for permanent in ["23505", "42P01", "22021", "0A000", "1", "19", "2067", "20", "26"] {
            assert!(is_permanent(permanent), "{permanent}");
        }
    }

    #[test]
    fn a_full_disk_is_known_wherever_it_stands_in_the_chain() {
        for code in [28, 122] {
            let cause = std::io::Error::from_raw_os_error(code);
            let text = anyhow::anyhow!("candle says: {cause}");
            assert!(Error::internal(anyhow::Error::new(cause).context("writing a file")).is_storage_full());
            assert!(Error::internal(text).is_storage_full());
        }
        assert!(!Error::internal(std::io::Error::from_raw_os_error(5)).is_storage_full());
    }
}
