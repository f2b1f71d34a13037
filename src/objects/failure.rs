//! What the SDK's errors mean to our callers: no such object, not allowed, or a store that cannot be reached. The whole
//! chain of the SDK goes to the log.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStreamError;

use super::Uri;
use crate::error::{Error, Kind};

/// Turns an SDK error about `uri` into ours. `doing` is the S3 operation's name.
pub(super) fn explain<E>(doing: &str, uri: &Uri, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let code = error.code().unwrap_or_default().to_string();
    let said = error.message().unwrap_or_default().to_string();
    let cause = anyhow::anyhow!("{doing} {uri}: {}", DisplayErrorContext(&error));
    let (kind, message) = match &error {
        SdkError::ServiceError(_) => meaning(uri, status.unwrap_or_default(), &code, &said),
        // The SDK sends nothing that names no object.
        SdkError::ConstructionFailure(_) if uri.key().is_empty() => {
            return Error::validation(format!("{uri} names a bucket; an object in it is needed")).because(cause);
        }
        SdkError::ConstructionFailure(_) => return Error::internal(cause),
        // No answer, half an answer, or too late: the network or the server is away.
        _ => return away(cause),
    };
    match kind {
        Kind::Internal => Error::internal(cause),
        _ => Error::new(kind, message).because(cause),
    }
}

/// Written and removed in an output folder to see whether that is allowed, under the name that AWS gives it.
pub(super) const WRITE_PROBE: &str = ".write_access_check_file.tmp";

/// Bedrock's sentence about an object that may not be read.
pub fn unreadable(uri: &Uri) -> String {
    let (bucket, key) = (uri.bucket(), uri.key());
    format!("Could not validate GetObject permissions to access Amazon S3 bucket: {bucket} at key {key}")
}

/// Bedrock's sentence about a folder that may not be written.
pub fn unwritable(folder: &Uri) -> String {
    let probe = folder.join(WRITE_PROBE);
    let (bucket, key) = (probe.bucket(), probe.key());
    format!("Could not validate PutObject permissions to access S3 bucket: {bucket} at key {key}")
}

/// A body that broke off while it was read.
pub(super) fn broken_off(uri: &Uri, error: ByteStreamError) -> Error {
    away(anyhow::Error::new(error).context(format!("reading {uri}")))
}

fn away(cause: anyhow::Error) -> Error {
    Error::new(Kind::Unavailable, "Object storage is not answering at the moment, please try again").because(cause)
}

fn meaning(uri: &Uri, status: u16, code: &str, said: &str) -> (Kind, String) {
    match (status, code) {
        (_, "NoSuchBucket") => (Kind::NotFound, format!("The S3 bucket {} does not exist", uri.bucket())),
        (404, _) => (Kind::NotFound, format!("There is nothing at {uri}")),
        (401 | 403, _) => {
            (Kind::AccessDenied, format!("Object storage refuses access to {uri} with this service's credentials"))
        }
        (409 | 412, _) => (Kind::Conflict, format!("{uri} was changed by someone else at the same time")),
        (507, _) => (Kind::Unavailable, format!("Object storage has no space left for {uri}")),
        (429 | 500 | 502 | 503 | 504, _) => {
            (Kind::Unavailable, "Object storage cannot handle the request at the moment, please try again".into())
        }
        (400..=499, _) => (Kind::Validation, format!("Object storage refuses {uri}: {code} {said}")),
        _ => (Kind::Internal, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_kinds_that_say_whether_to_come_back() {
        let uri = Uri::new("data", "a");
        for (status, code, kind) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "NoSuchBucket", Kind::NotFound),
            (404, "", Kind::NotFound),
            (403, "AccessDenied", Kind::AccessDenied),
            (403, "InvalidAccessKeyId", Kind::AccessDenied),
            (412, "PreconditionFailed", Kind::Conflict),
            (503, "SlowDown", Kind::Unavailable),
            (500, "InternalError", Kind::Unavailable),
            (507, "StorageFull", Kind::Unavailable),
            (400, "InvalidBucketName", Kind::Validation),
            (501, "NotImplemented", Kind::Internal),
        ] {
            assert_eq!(meaning(&uri, status, code, "").0, kind, "{status} {code}");
        }
        assert!(meaning(&uri, 507, "StorageFull", "").1.contains("no space left"));
    }
}
