//! Meaning of the SDK's errors for our callers: no such object, not allowed, or a store that cannot be reached. What is
//! permanent is a list of codes; whatever is not on it may pass and is worth another try. The whole chain of the SDK goes
//! to the log.

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
        SdkError::ServiceError(_) => meaning(doing, uri, status.unwrap_or_default(), &code, &said),
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
        _ if is_full(status, &code) => {
            let full = anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
            Error::new(kind, message).because(full.context(format!("{cause:#}")))
        }
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

/// Codes that say the same at every try, by what they mean to a caller.
const MISSING: [&str; 6] = ["NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404", "NoSuchEntity"];
const REFUSED: [&str; 15] = [
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidObjectState",
    "InvalidSecurity",
    "InvalidToken",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "Unauthorized",
    "UnauthorizedAccess",
];
const CONFLICTING: [&str; 5] =
    ["BucketAlreadyExists", "BucketAlreadyOwnedByYou", "BucketNotEmpty", "InvalidBucketState", "PreconditionFailed"];
const WRONG: [&str; 31] = [
    "BucketRegionError",
    "EntityTooLarge",
    "EntityTooSmall",
    "IllegalLocationConstraintException",
    "IllegalVersioningConfigurationException",
    "IncorrectEndpoint",
    "InvalidArgument",
    "InvalidBucketName",
    "InvalidDigest",
    "InvalidEncryptionAlgorithmError",
    "InvalidHostHeader",
    "InvalidLocationConstraint",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidRange",
    "InvalidRequest",
    "InvalidStorageClass",
    "InvalidTag",
    "InvalidURI",
    "KeyTooLong",
    "KeyTooLongError",
    "MalformedXML",
    "MaxMessageLengthExceeded",
    "MetadataTooLarge",
    "MethodNotAllowed",
    "MissingContentLength",
    "MissingSecurityHeader",
    "PermanentRedirect",
    "TooManyBuckets",
    "UnexpectedContent",
    "XMinioInvalidObjectName",
];

/// Whether the store, or somebody's share of it, has no space left.
fn is_full(status: Option<u16>, code: &str) -> bool {
    status == Some(507) || code.ends_with("StorageFull") || code.ends_with("QuotaExceeded")
}

fn meaning(doing: &str, uri: &Uri, status: u16, code: &str, said: &str) -> (Kind, String) {
    // A reply to HEAD has no body, and so no code of its own.
    let bare = code.is_empty() && doing.starts_with("Head");
    if code == "NoSuchBucket" {
        return (Kind::NotFound, format!("The S3 bucket {} does not exist", uri.bucket()));
    }
    if MISSING.contains(&code) || bare && status == 404 {
        return (Kind::NotFound, format!("There is nothing at {uri}"));
    }
    if REFUSED.contains(&code) || bare && matches!(status, 401 | 403) {
        let message = format!("Object storage refuses access to {uri} with this service's credentials");
        return (Kind::AccessDenied, message);
    }
    if CONFLICTING.contains(&code) || status == 412 {
        return (Kind::Conflict, format!("{uri} was changed by someone else at the same time"));
    }
    // Codes of a key service begin with its name; one that is throttled or not there for a moment says so.
    let key_service = code.strip_prefix("KMS.").is_some_and(|code| !code.contains("Throttling") && status < 500);
    if WRONG.contains(&code) || key_service || bare && matches!(status, 301 | 400 | 405 | 416) {
        return (Kind::Validation, format!("Object storage refuses {uri}: {code} {said}"));
    }
    if status == 501 {
        return (Kind::Internal, String::new());
    }
    if is_full(Some(status), code) {
        return (Kind::Unavailable, format!("Object storage has no space left for {uri}: free space there"));
    }
    (Kind::Unavailable, "Object storage cannot handle the request at the moment, please try again".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_permanent_is_a_list_and_everything_else_is_tried_again() {
        let uri = Uri::new("data", "a");
        for (status, code, kind) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "NoSuchBucket", Kind::NotFound),
            (403, "AccessDenied", Kind::AccessDenied),
            (403, "InvalidAccessKeyId", Kind::AccessDenied),
            (412, "PreconditionFailed", Kind::Conflict),
            (412, "", Kind::Conflict),
            (400, "InvalidBucketName", Kind::Validation),
            (400, "InvalidHostHeader", Kind::Validation),
            (400, "KMS.DisabledException", Kind::Validation),
            (501, "NotImplemented", Kind::Internal),
            // Each of these passes, whatever its status looks like.
            (400, "RequestTimeout", Kind::Unavailable),
            (400, "BadDigest", Kind::Unavailable),
            (400, "IncompleteBody", Kind::Unavailable),
            (400, "XAmzContentSHA256Mismatch", Kind::Unavailable),
            (400, "KMS.ThrottlingException", Kind::Unavailable),
            (403, "RequestTimeTooSkewed", Kind::Unavailable),
            (403, "", Kind::Unavailable),
            (404, "NoSuchUpload", Kind::Unavailable),
            (404, "", Kind::Unavailable),
            (408, "", Kind::Unavailable),
            (409, "OperationAborted", Kind::Unavailable),
            (409, "ConditionalRequestConflict", Kind::Unavailable),
            (409, "", Kind::Unavailable),
            (425, "", Kind::Unavailable),
            (429, "", Kind::Unavailable),
            (499, "ClientDisconnected", Kind::Unavailable),
            (500, "InternalError", Kind::Unavailable),
            (502, "", Kind::Unavailable),
            (503, "SlowDown", Kind::Unavailable),
            (503, "XMinioServerNotInitialized", Kind::Unavailable),
            (504, "", Kind::Unavailable),
            (507, "StorageFull", Kind::Unavailable),
            (520, "", Kind::Unavailable),
            (522, "", Kind::Unavailable),
            (524, "", Kind::Unavailable),
            (200, "SomethingNew", Kind::Unavailable),
        ] {
            assert_eq!(meaning("GetObject", &uri, status, code, "").0, kind, "{status} {code}");
        }
        assert!(meaning("PutObject", &uri, 507, "StorageFull", "").1.contains("no space left"));
    }

    #[test]
    fn a_reply_without_a_body_is_known_by_its_status() {
        let uri = Uri::new("data", "a");
        for (status, kind) in [
            (400, Kind::Validation),
            (401, Kind::AccessDenied),
            (403, Kind::AccessDenied),
            (404, Kind::NotFound),
            (408, Kind::Unavailable),
            (409, Kind::Unavailable),
            (503, Kind::Unavailable),
            (521, Kind::Unavailable),
        ] {
            assert_eq!(meaning("HeadObject", &uri, status, "", "").0, kind, "{status}");
        }
    }
}
