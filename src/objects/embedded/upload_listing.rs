//! Listings of uploads that are not completed, and of their parts.

use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListPartsInput,
    ListPartsOutput, MultipartUpload, Part, StorageClass,
};
use s3s::{S3Result, s3_error};
use sqlx::Row;

use super::digest::set_checksums;
use super::index::{Described, Index, expect_bucket, fault, pieces, stamp, tag};
use super::listing::{beyond, is_url, limit, url};
use super::multipart::{Which, no_such_upload, upload};

impl Index {
    pub(super) async fn list_parts(&self, input: ListPartsInput) -> S3Result<ListPartsOutput> {
        let which = Which { bucket: input.bucket, key: input.key, id: input.upload_id };
        let limit = limit(input.max_parts)?;
        let after = input.part_number_marker.unwrap_or(0);
        let mut tx = self.pool.begin().await.map_err(fault)?;
        expect_bucket(&mut tx, &which.bucket).await?;
        let described = upload(&mut tx, &which).await?.ok_or_else(no_such_upload)?;
        let mut found = pieces(&mut tx, &which.id).await?;
        found.retain(|piece| piece.number > after);
        let more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().map(|piece| piece.number);
        let parts = found.into_iter().map(|piece| {
            let mut part = Part {
                part_number: Some(piece.number),
                size: i64::try_from(piece.size).ok(),
                e_tag: Some(tag(&piece.md5)),
                last_modified: Some(stamp(piece.modified)),
                ..Part::default()
            };
            set_checksums!(part, piece.checksums);
            part
        });
        Ok(ListPartsOutput {
            parts: Some(parts.collect()),
            is_truncated: Some(more),
            max_parts: i32::try_from(limit).ok(),
            part_number_marker: Some(after),
            next_part_number_marker: last.filter(|_| more),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            bucket: Some(which.bucket),
            key: Some(which.key),
            upload_id: Some(which.id),
            checksum_algorithm: described.checksum_algorithm.map(ChecksumAlgorithm::from),
            checksum_type: described.checksum_type.map(ChecksumType::from),
            ..ListPartsOutput::default()
        })
    }

    pub(super) async fn list_uploads(&self, input: ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
        if input.delimiter.as_ref().is_some_and(|delimiter| !delimiter.is_empty()) {
            return Err(s3_error!(NotImplemented, "A delimiter in the listing of uploads is not implemented"));
        }
        let encoded = is_url(input.encoding_type.as_ref())?;
        let encode = |text: String| if encoded { url(&text) } else { text };
        let limit = limit(input.max_uploads)?;
        let prefix = input.prefix.unwrap_or_default();
        let key = input.key_marker.unwrap_or_default();
        // Without an upload to start after, all uploads of the marker's key were on the page before.
        let id = input.upload_id_marker.unwrap_or_else(|| "~".to_string());
        self.expect_bucket(&input.bucket).await?;
        let rows = sqlx::query(
            "SELECT id, key, initiated, described FROM uploads WHERE bucket = ? AND key >= ? AND (? = X'' OR key < ?) \
             AND (key, id) > (?, ?) ORDER BY key, id LIMIT ?",
        )
        .bind(&input.bucket)
        .bind(prefix.as_bytes())
        .bind(prefix.as_bytes())
        .bind(beyond(prefix.as_bytes()))
        .bind(key.as_bytes())
        .bind(if key.is_empty() { "" } else { id.as_str() })
        .bind(i64::try_from(limit + 1).map_err(fault)?)
        .fetch_all(&self.pool)
        .await
        .map_err(fault)?;
        let mut uploads = Vec::with_capacity(rows.len());
        for row in &rows {
            let key = String::from_utf8(row.try_get("key").map_err(fault)?).map_err(fault)?;
            let described: String = row.try_get("described").map_err(fault)?;
            let described: Described = serde_json::from_str(&described).map_err(fault)?;
            uploads.push(MultipartUpload {
                upload_id: Some(row.try_get("id").map_err(fault)?),
                key: Some(encode(key)),
                initiated: Some(stamp(row.try_get("initiated").map_err(fault)?)),
                storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
                checksum_algorithm: described.checksum_algorithm.map(ChecksumAlgorithm::from),
                checksum_type: described.checksum_type.map(ChecksumType::from),
                ..MultipartUpload::default()
            });
        }
        let more = uploads.len() > limit;
        uploads.truncate(limit);
        let last = uploads.last().filter(|_| more).cloned();
        Ok(ListMultipartUploadsOutput {
            is_truncated: Some(more),
            max_uploads: i32::try_from(limit).ok(),
            next_key_marker: last.as_ref().and_then(|last| last.key.clone()),
            next_upload_id_marker: last.and_then(|last| last.upload_id),
            uploads: Some(uploads),
            prefix: Some(encode(prefix)),
            key_marker: Some(encode(key)),
            encoding_type: input.encoding_type,
            bucket: Some(input.bucket),
            ..ListMultipartUploadsOutput::default()
        })
    }
}
