//! What travels with an object: its type, its caching, its user metadata. And what we refuse rather
//! than silently drop.

use std::collections::BTreeMap;

use s3s::dto::{ObjectCannedACL, Timestamp, TimestampFormat};
use s3s::{S3Result, s3_error};

/// S3's limit for user metadata, names and values together.
const MAX_METADATA: usize = 2048;

/// Collects what put, copy and create-upload inputs share.
macro_rules! describe {
    ($input:expr) => {
        $crate::objects::embedded::described::metadata($input.metadata.clone()).map(|metadata| {
            $crate::objects::embedded::index::Described {
                content_type: $input.content_type.clone(),
                content_encoding: $crate::objects::embedded::described::encoding($input.content_encoding.clone()),
                content_language: $input.content_language.clone(),
                content_disposition: $input.content_disposition.clone(),
                cache_control: $input.cache_control.clone(),
                expires: $input.expires.as_ref().and_then($crate::objects::embedded::described::http_date),
                metadata,
                ..Default::default()
            }
        })
    };
}

/// Repeats it in an answer.
macro_rules! describe_again {
    ($output:expr, $described:expr) => {{
        let described = &$described;
        // AWS's default.
        let unnamed = || "binary/octet-stream".to_string();
        $output.content_type = Some(described.content_type.clone().unwrap_or_else(unnamed));
        $output.content_encoding = described.content_encoding.clone();
        $output.content_language = described.content_language.clone();
        $output.content_disposition = described.content_disposition.clone();
        $output.cache_control = described.cache_control.clone();
        $output.expires = described.expires.as_deref().and_then($crate::objects::embedded::described::from_http_date);
        $output.metadata = Some(described.metadata.clone().into_iter().collect());
    }};
}

/// A caller who asks for encryption, a lock, a redirect or public access must not believe that
/// they have it.
macro_rules! refuse_unsupported {
    ($input:expr) => {
        if $input.server_side_encryption.is_some() || $input.sse_customer_algorithm.is_some() {
            return Err(s3s::s3_error!(
                NotImplemented,
                "The embedded object store does not encrypt: leave the encryption settings out, or set S3_ENDPOINT to \
                 a store that does"
            ));
        }
        let locked = $input.object_lock_mode.is_some()
            || $input.object_lock_legal_hold_status.is_some()
            || $input.object_lock_retain_until_date.is_some();
        if locked || $input.website_redirect_location.is_some() {
            return Err(s3s::s3_error!(NotImplemented, "Locks and redirects are not implemented"));
        }
        let granted = [&$input.grant_full_control, &$input.grant_read, &$input.grant_read_acp, &$input.grant_write_acp];
        if granted.iter().any(|grant| grant.is_some()) {
            return Err(s3s::s3_error!(NotImplemented, "Objects are private: grants are not implemented"));
        }
        if $input.storage_class.as_ref().is_some_and(|class| class.as_str() != s3s::dto::StorageClass::STANDARD) {
            return Err(s3s::s3_error!(
                InvalidStorageClass,
                "The embedded object store has one storage class, STANDARD"
            ));
        }
        $crate::objects::embedded::described::private($input.acl.as_ref())?;
    };
}
pub(super) use {describe, describe_again, refuse_unsupported};

/// User metadata, if it is not too much.
pub(super) fn metadata(given: Option<s3s::dto::Metadata>) -> S3Result<BTreeMap<String, String>> {
    let given: BTreeMap<String, String> = given.into_iter().flatten().collect();
    if given.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_METADATA {
        return Err(s3_error!(MetadataTooLarge, "Your metadata headers exceed the maximum allowed metadata size"));
    }
    Ok(given)
}

/// `aws-chunked` says how the request travelled, not what the object is.
pub(super) fn encoding(given: Option<String>) -> Option<String> {
    let given = given?;
    let kept: Vec<_> = given.split(',').map(str::trim).filter(|e| !e.is_empty() && *e != "aws-chunked").collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// # Errors
/// `NotImplemented` for an ACL that would let others in.
pub(super) fn private(acl: Option<&ObjectCannedACL>) -> S3Result<()> {
    let same = [ObjectCannedACL::PRIVATE, ObjectCannedACL::BUCKET_OWNER_FULL_CONTROL];
    match acl {
        Some(acl) if !same.contains(&acl.as_str()) => {
            Err(s3_error!(NotImplemented, "Objects are private: access control lists are not implemented"))
        }
        _ => Ok(()),
    }
}

/// For the row.
pub(super) fn http_date(at: &Timestamp) -> Option<String> {
    let mut text = Vec::new();
    at.format(TimestampFormat::HttpDate, &mut text).ok()?;
    String::from_utf8(text).ok()
}

/// From the row.
pub(super) fn from_http_date(text: &str) -> Option<Timestamp> {
    Timestamp::parse(TimestampFormat::HttpDate, text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_the_journey_is_not_the_objects() {
        assert_eq!(encoding(Some("aws-chunked".into())), None);
        assert_eq!(encoding(Some("gzip, aws-chunked".into())), Some("gzip".into()));
        assert_eq!(encoding(Some("gzip".into())), Some("gzip".into()));
        assert_eq!(encoding(None), None);
    }

    #[test]
    fn expiry_dates_come_back_as_they_were() {
        let text = "Wed, 21 Oct 2015 07:28:00 GMT";
        assert_eq!(from_http_date(text).as_ref().and_then(http_date).as_deref(), Some(text));
    }
}
