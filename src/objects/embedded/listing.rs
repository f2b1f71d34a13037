//! Listings: keys in the order of their bytes, rolled up at a delimiter, page by page.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    CommonPrefix, EncodingType, ListObjectVersionsInput, ListObjectVersionsOutput, ListObjectsInput, ListObjectsOutput,
    ListObjectsV2Input, ListObjectsV2Output, Object, ObjectStorageClass, ObjectVersion, ObjectVersionStorageClass,
    Owner,
};
use s3s::{S3Result, s3_error};
use sqlx::Row;

use super::index::{Index, fault, stamp, tag};

/// S3's largest page.
const PAGE: i32 = 1000;
/// Rows read at a time when a delimiter may let us jump over most of them.
const STRIDE: i64 = 100;
/// What `encoding-type=url` leaves as it is.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// What to list.
struct Wanted<'a> {
    bucket: &'a str,
    prefix: &'a str,
    delimiter: Option<&'a str>,
    /// The first key that may appear.
    from: Vec<u8>,
    limit: usize,
    /// `encoding-type=url`.
    encoded: bool,
}

/// One page.
#[derive(Default)]
struct Page {
    contents: Vec<Object>,
    prefixes: Vec<String>,
    /// Where the next page begins, when there is one.
    next: Option<Vec<u8>>,
    /// The last key or prefix on this page.
    last: Option<String>,
}

impl Index {
    pub(super) async fn list_objects_v2(&self, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        let from = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => URL_SAFE_NO_PAD
                .decode(token)
                .map_err(|_| s3_error!(InvalidArgument, "The continuation token provided is incorrect"))?,
            (None, Some(after)) => following(after),
            (None, None) => Vec::new(),
        };
        let encoded = is_url(input.encoding_type.as_ref())?;
        let limit = limit(input.max_keys)?;
        let wanted =
            Wanted { bucket: &input.bucket, prefix: &prefix, delimiter: delimiter.as_deref(), from, limit, encoded };
        let page = self.page(&wanted).await?;
        let encode = |text: String| if encoded { url(&text) } else { text };
        Ok(ListObjectsV2Output {
            key_count: i32::try_from(page.contents.len() + page.prefixes.len()).ok(),
            max_keys: i32::try_from(limit).ok(),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|next| URL_SAFE_NO_PAD.encode(next)),
            contents: Some(page.contents),
            common_prefixes: Some(common(page.prefixes)),
            prefix: Some(encode(prefix)),
            delimiter: delimiter.map(encode),
            start_after: input.start_after.map(encode),
            continuation_token: input.continuation_token,
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            ..ListObjectsV2Output::default()
        })
    }

    pub(super) async fn list_objects(&self, input: ListObjectsInput) -> S3Result<ListObjectsOutput> {
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        let from = match (&input.marker, &delimiter) {
            // A marker that is a rolled-up prefix, as the page before gave it: all below it was on that page.
            (Some(marker), Some(delimiter)) if marker.len() > prefix.len() && marker.ends_with(delimiter) => {
                beyond(marker.as_bytes())
            }
            (Some(marker), _) if !marker.is_empty() => following(marker),
            _ => Vec::new(),
        };
        let encoded = is_url(input.encoding_type.as_ref())?;
        let limit = limit(input.max_keys)?;
        let wanted =
            Wanted { bucket: &input.bucket, prefix: &prefix, delimiter: delimiter.as_deref(), from, limit, encoded };
        let page = self.page(&wanted).await?;
        let encode = |text: String| if encoded { url(&text) } else { text };
        let more = page.next.is_some();
        Ok(ListObjectsOutput {
            max_keys: i32::try_from(limit).ok(),
            is_truncated: Some(more),
            // AWS gives it only with a delimiter; clients otherwise take the last key, which is the same.
            next_marker: page.last.filter(|_| more).map(encode),
            contents: Some(page.contents),
            common_prefixes: Some(common(page.prefixes)),
            prefix: Some(encode(prefix)),
            delimiter: delimiter.map(encode),
            marker: input.marker.map(encode),
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            ..ListObjectsOutput::default()
        })
    }

    /// Every object as its only version, which S3 calls `null` where versions were never kept.
    pub(super) async fn list_versions(
        &self,
        input: ListObjectVersionsInput,
        owner: &Owner,
    ) -> S3Result<ListObjectVersionsOutput> {
        if input.key_marker.is_none() && input.version_id_marker.as_ref().is_some_and(|marker| !marker.is_empty()) {
            return Err(s3_error!(InvalidArgument, "A version-id marker cannot be specified without a key marker."));
        }
        let listed = self
            .list_objects(ListObjectsInput {
                bucket: input.bucket,
                delimiter: input.delimiter,
                encoding_type: input.encoding_type,
                marker: input.key_marker.clone(),
                max_keys: input.max_keys,
                prefix: input.prefix,
                ..ListObjectsInput::default()
            })
            .await?;
        let versions = listed.contents.unwrap_or_default().into_iter().map(|object| ObjectVersion {
            key: object.key,
            version_id: Some("null".to_string()),
            is_latest: Some(true),
            last_modified: object.last_modified,
            e_tag: object.e_tag,
            size: object.size,
            storage_class: Some(ObjectVersionStorageClass::from_static(ObjectVersionStorageClass::STANDARD)),
            owner: Some(owner.clone()),
            ..ObjectVersion::default()
        });
        let more = listed.next_marker.is_some();
        Ok(ListObjectVersionsOutput {
            versions: Some(versions.collect()),
            common_prefixes: listed.common_prefixes,
            delimiter: listed.delimiter,
            encoding_type: listed.encoding_type,
            is_truncated: listed.is_truncated,
            key_marker: listed.marker,
            max_keys: listed.max_keys,
            name: listed.name,
            next_key_marker: listed.next_marker,
            next_version_id_marker: more.then(|| "null".to_string()),
            prefix: listed.prefix,
            version_id_marker: input.version_id_marker,
            ..ListObjectVersionsOutput::default()
        })
    }

    async fn page(&self, wanted: &Wanted<'_>) -> S3Result<Page> {
        self.expect_bucket(wanted.bucket).await?;
        let prefix = wanted.prefix.as_bytes();
        let mut page = Page::default();
        let mut from = wanted.from.clone().max(prefix.to_vec());
        if wanted.limit == 0 {
            return Ok(page);
        }
        let stride = if wanted.delimiter.is_some() { STRIDE } else { i64::from(PAGE) + 1 };
        loop {
            let rows = sqlx::query(
                "SELECT key, size, etag, modified FROM objects WHERE bucket = ? AND key >= ? ORDER BY key LIMIT ?",
            )
            .bind(wanted.bucket)
            .bind(&from)
            .bind(stride)
            .fetch_all(&self.pool)
            .await
            .map_err(fault)?;
            let whole = i64::try_from(rows.len()).is_ok_and(|found| found == stride);
            for row in rows {
                let key: Vec<u8> = row.try_get("key").map_err(fault)?;
                if key < from {
                    // Below a prefix that was just rolled up.
                    continue;
                }
                if !key.starts_with(prefix) {
                    return Ok(page);
                }
                if page.contents.len() + page.prefixes.len() == wanted.limit {
                    page.next = Some(from);
                    return Ok(page);
                }
                let key = String::from_utf8(key).map_err(fault)?;
                let rolled = wanted.delimiter.and_then(|delimiter| {
                    let at = key[wanted.prefix.len()..].find(delimiter)?;
                    Some(key[..wanted.prefix.len() + at + delimiter.len()].to_string())
                });
                page.last = Some(rolled.clone().unwrap_or_else(|| key.clone()));
                if let Some(rolled) = rolled {
                    from = beyond(rolled.as_bytes());
                    page.prefixes.push(if wanted.encoded { url(&rolled) } else { rolled });
                    continue;
                }
                from = following(&key);
                page.contents.push(Object {
                    key: Some(if wanted.encoded { url(&key) } else { key }),
                    size: Some(row.try_get("size").map_err(fault)?),
                    e_tag: Some(tag(row.try_get("etag").map_err(fault)?)),
                    last_modified: Some(stamp(row.try_get("modified").map_err(fault)?)),
                    storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
                    ..Object::default()
                });
            }
            if !whole || from.is_empty() {
                return Ok(page);
            }
        }
    }
}

/// The first key after `key`.
pub(super) fn following(key: &str) -> Vec<u8> {
    let mut after = key.as_bytes().to_vec();
    after.push(0);
    after
}

/// The first bytes after everything that begins with `prefix`. UTF-8 has no byte 0xFF, so the last
/// byte can always be raised.
pub(super) fn beyond(prefix: &[u8]) -> Vec<u8> {
    let mut after = prefix.to_vec();
    if let Some(last) = after.last_mut() {
        *last = last.saturating_add(1);
    }
    after
}

/// `encoding-type=url`.
pub(super) fn url(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

/// # Errors
/// `InvalidArgument` for an encoding other than `url`.
pub(super) fn is_url(encoding: Option<&EncodingType>) -> S3Result<bool> {
    match encoding.map(EncodingType::as_str) {
        None => Ok(false),
        Some("url") => Ok(true),
        Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
    }
}

/// # Errors
/// `InvalidArgument` for a negative number.
pub(super) fn limit(max: Option<i32>) -> S3Result<usize> {
    usize::try_from(max.unwrap_or(PAGE).min(PAGE))
        .map_err(|_| s3_error!(InvalidArgument, "Argument max-keys must be an integer between 0 and 2147483647"))
}

pub(super) fn common(prefixes: Vec<String>) -> Vec<CommonPrefix> {
    prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect()
}
