//! The conditions of a request (`If-Match` and its kin) and the slice of an object that it wants.

use std::ops;

use s3s::dto::{ETag, ETagCondition, Range, Timestamp};
use s3s::{S3Error, S3Result, s3_error};

use super::digest::Checksums;
use super::index::{Held, Object, no_such_key, stamp, tag};

/// Conditions of a put, a delete or a completed upload.
#[derive(Debug, Default)]
pub(super) struct Writing {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
}

impl Writing {
    pub(super) fn any(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some()
    }

    /// Compares with the object that is there; to be asked inside the transaction that replaces it.
    ///
    /// # Errors
    /// `PreconditionFailed`; `NoSuchKey` when an ETag is expected of nothing.
    pub(super) fn check(&self, there: Option<&Object>) -> S3Result<()> {
        match &self.if_none_match {
            Some(ETagCondition::Any) if there.is_some() => return Err(failed()),
            Some(ETagCondition::ETag(_)) => {
                return Err(s3_error!(NotImplemented, "If-None-Match takes only * when something is written"));
            }
            _ => {}
        }
        match (&self.if_match, there) {
            (None, _) | (Some(ETagCondition::Any), Some(_)) => Ok(()),
            (Some(_), None) => Err(no_such_key()),
            (Some(ETagCondition::ETag(expected)), Some(there)) if expected.value() == there.etag => Ok(()),
            _ => Err(failed()),
        }
    }
}

/// Conditions of a get, a head or a copy's source.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
    pub(super) if_modified_since: Option<Timestamp>,
    pub(super) if_unmodified_since: Option<Timestamp>,
}

/// What of an object is to be sent.
#[derive(Debug)]
pub(super) struct Slice {
    /// Offsets of its bytes.
    pub(super) range: ops::Range<u64>,
    /// `Content-Range`, when it is not the whole.
    pub(super) content_range: Option<String>,
    /// How many parts the object has, when one of them was asked for.
    pub(super) parts_count: Option<i32>,
    /// The checksums of these bytes, and of what kind they are.
    pub(super) checksums: (Checksums, Option<String>),
}

impl Reading {
    /// # Errors
    /// `PreconditionFailed`, `NotModified`, `InvalidRange`, `NoSuchVersion`.
    pub(super) fn slice(
        &self,
        held: &Held,
        range: Option<Range>,
        part: Option<i32>,
        version: Option<&str>,
    ) -> S3Result<Slice> {
        if version.is_some_and(|version| version != "null") {
            return Err(s3_error!(NoSuchVersion, "The specified version does not exist."));
        }
        match self.holds(&held.object) {
            Verdict::Yes => {}
            Verdict::Failed => return Err(failed()),
            Verdict::NotModified => {
                let mut error = s3_error!(NotModified, "Not Modified");
                let mut headers = hyper::HeaderMap::new();
                if let Ok(etag) = tag(&held.object.etag).to_http_header() {
                    headers.insert(hyper::header::ETAG, etag);
                }
                error.set_headers(headers);
                return Err(error);
            }
        }
        let size = held.object.size;
        if let Some(number) = part {
            if range.is_some() {
                return Err(s3_error!(
                    InvalidRequest,
                    "Cannot specify both Range header and partNumber query parameter"
                ));
            }
            // Parts count from one in the order they lie, whatever numbers they were sent under.
            let at = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
            let at = at.filter(|at| *at < held.pieces.len()).ok_or_else(unsatisfiable)?;
            let start: u64 = held.pieces[..at].iter().map(|piece| piece.size).sum();
            let range = start..start + held.pieces[at].size;
            let parts_count = held.object.etag.contains('-').then_some(held.pieces.len());
            let content_range = (!range.is_empty()).then(|| content_range(&range, size));
            let described = &held.object.described;
            let checksums = match parts_count {
                Some(_) => held.pieces[at].checksums.clone(),
                None => described.checksums.clone(),
            };
            return Ok(Slice {
                range,
                content_range,
                parts_count: parts_count.and_then(|count| i32::try_from(count).ok()),
                checksums: (checksums, described.checksum_type.clone()),
            });
        }
        let Some(range) = range else {
            let described = &held.object.described;
            let checksums = (described.checksums.clone(), described.checksum_type.clone());
            return Ok(Slice { range: 0..size, content_range: None, parts_count: None, checksums });
        };
        let range = range.check(size).map_err(|_| unsatisfiable())?;
        if range.is_empty() {
            return Err(unsatisfiable());
        }
        let content_range = Some(content_range(&range, size));
        // Nobody knows the checksum of an arbitrary stretch.
        Ok(Slice { content_range, range, parts_count: None, checksums: Default::default() })
    }

    /// # Errors
    /// `PreconditionFailed`: a copy knows no "not modified".
    pub(super) fn allows_copy(&self, object: &Object) -> S3Result<()> {
        match self.holds(object) {
            Verdict::Yes => Ok(()),
            Verdict::Failed | Verdict::NotModified => Err(failed()),
        }
    }

    /// RFC 9110 §13.2.2: an ETag condition overrules the date of its kind.
    fn holds(&self, object: &Object) -> Verdict {
        // Dates on the wire have no milliseconds.
        let modified = stamp(object.modified / 1000 * 1000);
        let matches = |condition: &ETagCondition| match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(ETag::Strong(value) | ETag::Weak(value)) => *value == object.etag,
        };
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) if !matches(condition) => return Verdict::Failed,
            (None, Some(since)) if modified > *since => return Verdict::Failed,
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) if matches(condition) => Verdict::NotModified,
            (None, Some(since)) if modified <= *since => Verdict::NotModified,
            _ => Verdict::Yes,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Yes,
    Failed,
    NotModified,
}

fn content_range(range: &ops::Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1))
}

fn failed() -> S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

fn unsatisfiable() -> S3Error {
    s3_error!(InvalidRange, "The requested range is not satisfiable")
}

#[cfg(test)]
mod tests {
    use super::super::index::Described;
    use super::*;

    fn object() -> Object {
        Object { id: String::new(), size: 10, etag: "abc".into(), modified: 5_500, described: Described::default() }
    }

    fn etag(text: &str) -> Option<ETagCondition> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_etag_overrules_the_date_of_its_kind() {
        let old = Some(stamp(1_000));
        let now = Some(stamp(5_000));
        let cases = [
            (Reading::default(), Verdict::Yes),
            (
                Reading { if_match: etag("\"abc\""), if_unmodified_since: old.clone(), ..Reading::default() },
                Verdict::Yes,
            ),
            (Reading { if_match: etag("\"xyz\""), ..Reading::default() }, Verdict::Failed),
            (Reading { if_match: etag("*"), ..Reading::default() }, Verdict::Yes),
            (Reading { if_unmodified_since: old.clone(), ..Reading::default() }, Verdict::Failed),
            (Reading { if_unmodified_since: now.clone(), ..Reading::default() }, Verdict::Yes),
            (Reading { if_none_match: etag("\"abc\""), ..Reading::default() }, Verdict::NotModified),
            (
                Reading { if_none_match: etag("\"xyz\""), if_modified_since: now.clone(), ..Reading::default() },
                Verdict::Yes,
            ),
            (Reading { if_modified_since: now, ..Reading::default() }, Verdict::NotModified),
            (Reading { if_modified_since: old, ..Reading::default() }, Verdict::Yes),
        ];
        for (reading, verdict) in cases {
            assert_eq!(reading.holds(&object()), verdict, "{reading:?}");
        }
    }

    #[test]
    fn a_write_may_ask_for_nothing_or_for_this_very_object() {
        let code = |writing: Writing, there: Option<&Object>| {
            writing.check(there).err().map(|e| e.code().as_str().to_string())
        };
        let none = || Writing { if_none_match: etag("*"), ..Writing::default() };
        let same = |e: &str| Writing { if_match: etag(e), ..Writing::default() };
        assert_eq!(code(none(), None), None);
        assert_eq!(code(none(), Some(&object())).as_deref(), Some("PreconditionFailed"));
        assert_eq!(code(same("\"abc\""), Some(&object())), None);
        assert_eq!(code(same("\"xyz\""), Some(&object())).as_deref(), Some("PreconditionFailed"));
        assert_eq!(code(same("\"abc\""), None).as_deref(), Some("NoSuchKey"));
    }
}
