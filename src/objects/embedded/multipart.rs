//! Uploads in parts. A part is a file of its own; completing an upload makes an object of the same
//! id out of the parts that are named, in one transaction and without copying a byte.

use md5::{Digest, Md5};
use s3s::dto::{
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, CopyPartResult,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListPartsInput, ListPartsOutput, MultipartUpload, Part, Range, StorageClass, UploadPartCopyInput,
    UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3Request, S3Result, s3_error};
use sqlx::{Row, Sqlite, Transaction};

use super::conditions::{Reading, Writing};
use super::described::{describe, refuse_unsupported};
use super::digest::{Announced, checksums_of, set_checksums};
use super::index::{
    Described, Index, Object, Piece, expect_bucket, fault, find, insert_piece, pieces, point, remove_pieces, stamp, tag,
};
use super::intake::{Taken, take};
use super::listing::{beyond, is_url, limit, url};
use super::objects::{body, source};

/// Every part but the last has at least this many bytes.
const MIN_PART: u64 = 5 << 20;
const PARTS: std::ops::RangeInclusive<i32> = 1..=10_000;

/// Which upload of which object.
struct Which {
    bucket: String,
    key: String,
    id: String,
}

impl Index {
    pub(super) async fn create_upload(
        &self,
        input: CreateMultipartUploadInput,
    ) -> S3Result<CreateMultipartUploadOutput> {
        refuse_unsupported!(input);
        let described = describe!(input)?;
        let id = self.files.name();
        let mut tx = self.begin().await?;
        expect_bucket(&mut tx, &input.bucket).await?;
        sqlx::query("INSERT INTO uploads (id, bucket, key, initiated, described) VALUES (?, ?, ?, ?, ?)")
            .bind(&id)
            .bind(&input.bucket)
            .bind(input.key.as_bytes())
            .bind(self.clock.now())
            .bind(serde_json::to_string(&described).map_err(fault)?)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
        self.commit(tx, Vec::new()).await?;
        Ok(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: input.checksum_type,
            ..CreateMultipartUploadOutput::default()
        })
    }

    pub(super) async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<UploadPartOutput> {
        let S3Request { input, headers, trailing_headers, .. } = request;
        let sums = checksums_of!(input);
        let length = input.content_length;
        let announced = Announced::new(input.content_md5.as_deref(), sums, length, trailing_headers, &headers)?;
        let which = Which { bucket: input.bucket, key: input.key, id: input.upload_id };
        self.expect_upload(&which).await?;
        let taken = take(&self.files, input.body, announced).await?;
        let piece = self.store_part(which, input.part_number, taken).await?;
        let mut output = UploadPartOutput { e_tag: Some(tag(&piece.md5)), ..UploadPartOutput::default() };
        set_checksums!(output, piece.checksums);
        Ok(output)
    }

    pub(super) async fn upload_part_copy(&self, input: UploadPartCopyInput) -> S3Result<UploadPartCopyOutput> {
        let which = Which { bucket: input.bucket, key: input.key, id: input.upload_id };
        self.expect_upload(&which).await?;
        let (bucket, key) = source(&input.copy_source)?;
        let held = self.hold(bucket, key).await?;
        let reading = Reading {
            if_match: input.copy_source_if_match,
            if_none_match: input.copy_source_if_none_match,
            if_modified_since: input.copy_source_if_modified_since,
            if_unmodified_since: input.copy_source_if_unmodified_since,
        };
        reading.allows_copy(&held.object)?;
        let range = match input.copy_source_range.as_deref() {
            None => 0..held.object.size,
            Some(range) => Range::parse(range)
                .map_err(|_| {
                    s3_error!(InvalidArgument, "The x-amz-copy-source-range value must be of the form bytes=first-last")
                })?
                .check(held.object.size)?,
        };
        let taken = take(&self.files, Some(body(self, held, range)), Announced::default()).await?;
        let piece = self.store_part(which, input.part_number, taken).await?;
        Ok(UploadPartCopyOutput {
            copy_part_result: Some(CopyPartResult {
                e_tag: Some(tag(&piece.md5)),
                last_modified: Some(stamp(piece.modified)),
                ..CopyPartResult::default()
            }),
            ..UploadPartCopyOutput::default()
        })
    }

    /// Adds a part, replacing the one of the same number.
    async fn store_part(&self, which: Which, number: i32, taken: Taken) -> S3Result<Piece> {
        if !PARTS.contains(&number) {
            return Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"));
        }
        let index = self.clone();
        let stored = tokio::spawn(async move {
            let Taken { mut fresh, size, md5, checksums } = taken;
            let modified = index.clock.now();
            let piece = Piece { file: fresh.name.clone(), number, size, md5: hex::encode(md5), modified, checksums };
            let mut tx = index.begin().await?;
            // It may have been completed or aborted while the part arrived.
            upload(&mut tx, &which).await?.ok_or_else(no_such_upload)?;
            let gone: Vec<String> =
                sqlx::query_scalar("DELETE FROM pieces WHERE owner = ? AND number = ? RETURNING file")
                    .bind(&which.id)
                    .bind(number)
                    .fetch_all(&mut *tx)
                    .await
                    .map_err(fault)?;
            insert_piece(&mut tx, &which.id, &piece).await?;
            fresh.keep();
            index.commit(tx, vec![(which.id, gone)]).await?;
            Ok(piece)
        });
        stored.await.map_err(fault)?
    }

    pub(super) async fn complete_upload(
        &self,
        input: CompleteMultipartUploadInput,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        if checksums_of!(input).any() {
            return Err(s3_error!(
                NotImplemented,
                "Checksums of whole multipart uploads are not implemented; parts have theirs"
            ));
        }
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let writing = Writing { if_match: input.if_match, if_none_match: input.if_none_match };
        let which = Which { bucket: input.bucket.clone(), key: input.key.clone(), id: input.upload_id };
        let index = self.clone();
        let expected = input.mpu_object_size;
        let completed = tokio::spawn(async move { index.complete(which, named, writing, expected).await });
        let object = completed.await.map_err(fault)??;
        Ok(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, url(&input.key))),
            e_tag: Some(tag(&object.etag)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            ..CompleteMultipartUploadOutput::default()
        })
    }

    async fn complete(
        &self,
        which: Which,
        named: Vec<CompletedPart>,
        writing: Writing,
        expected: Option<i64>,
    ) -> S3Result<Object> {
        let mut tx = self.begin().await?;
        expect_bucket(&mut tx, &which.bucket).await?;
        let there = find(&mut tx, &which.bucket, &which.key).await?;
        let Some(described) = upload(&mut tx, &which).await? else {
            // A client that did not hear the answer asks again: the object of this upload is the answer.
            return there.filter(|object| object.id == which.id).ok_or_else(no_such_upload);
        };
        writing.check(there.as_ref())?;
        let parts = chosen(&pieces(&mut tx, &which.id).await?, &named)?;
        let size = parts.iter().map(|part| part.size).sum();
        if expected.is_some_and(|expected| i64::try_from(size) != Ok(expected)) {
            return Err(s3_error!(InvalidRequest, "The size of the parts differs from x-amz-mp-object-size"));
        }
        let object = Object { id: which.id.clone(), size, etag: etag(&parts)?, modified: self.clock.now(), described };
        let mut gone = point(&mut tx, &which.bucket, &which.key, &object).await?;
        let mut unnamed = Vec::new();
        for piece in pieces(&mut tx, &which.id).await? {
            if !parts.iter().any(|part| part.file == piece.file) {
                sqlx::query("DELETE FROM pieces WHERE file = ?")
                    .bind(&piece.file)
                    .execute(&mut *tx)
                    .await
                    .map_err(fault)?;
                unnamed.push(piece.file);
            }
        }
        gone.push((which.id.clone(), unnamed));
        sqlx::query("DELETE FROM uploads WHERE id = ?").bind(&which.id).execute(&mut *tx).await.map_err(fault)?;
        self.commit(tx, gone).await?;
        Ok(object)
    }

    pub(super) async fn abort_upload(&self, bucket: String, key: String, id: String) -> S3Result<()> {
        let index = self.clone();
        let aborted = tokio::spawn(async move {
            let which = Which { bucket, key, id };
            let mut tx = index.begin().await?;
            expect_bucket(&mut tx, &which.bucket).await?;
            upload(&mut tx, &which).await?.ok_or_else(no_such_upload)?;
            sqlx::query("DELETE FROM uploads WHERE id = ?").bind(&which.id).execute(&mut *tx).await.map_err(fault)?;
            let gone = remove_pieces(&mut tx, which.id).await?;
            index.commit(tx, vec![gone]).await
        });
        aborted.await.map_err(fault)?
    }

    pub(super) async fn list_parts(&self, input: ListPartsInput) -> S3Result<ListPartsOutput> {
        let which = Which { bucket: input.bucket, key: input.key, id: input.upload_id };
        let limit = limit(input.max_parts)?;
        let after = input.part_number_marker.unwrap_or(0);
        let mut tx = self.pool.begin().await.map_err(fault)?;
        expect_bucket(&mut tx, &which.bucket).await?;
        upload(&mut tx, &which).await?.ok_or_else(no_such_upload)?;
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
            "SELECT id, key, initiated FROM uploads WHERE bucket = ? AND key >= ? AND (? = X'' OR key < ?) \
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
            uploads.push(MultipartUpload {
                upload_id: Some(row.try_get("id").map_err(fault)?),
                key: Some(encode(key)),
                initiated: Some(stamp(row.try_get("initiated").map_err(fault)?)),
                storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
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

    async fn expect_upload(&self, which: &Which) -> S3Result<()> {
        let mut tx = self.pool.begin().await.map_err(fault)?;
        expect_bucket(&mut tx, &which.bucket).await?;
        upload(&mut tx, which).await?.map(drop).ok_or_else(no_such_upload)
    }
}

/// What was said when the upload began, if it still is one of this very object.
async fn upload(tx: &mut Transaction<'_, Sqlite>, which: &Which) -> S3Result<Option<Described>> {
    let described: Option<String> =
        sqlx::query_scalar("SELECT described FROM uploads WHERE id = ? AND bucket = ? AND key = ?")
            .bind(&which.id)
            .bind(&which.bucket)
            .bind(which.key.as_bytes())
            .fetch_optional(&mut **tx)
            .await
            .map_err(fault)?;
    described.map(|described| serde_json::from_str(&described).map_err(fault)).transpose()
}

/// The parts that the client names, compared with those that are there.
///
/// # Errors
/// `MalformedXML` for none, `InvalidPartOrder`, `InvalidPart`, `EntityTooSmall`.
fn chosen(there: &[Piece], named: &[CompletedPart]) -> S3Result<Vec<Piece>> {
    if named.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    let invalid = || {
        s3_error!(
            InvalidPart,
            "One or more of the specified parts could not be found. The part may not have been uploaded, or the \
             specified entity tag may not match the part's entity tag."
        )
    };
    let mut parts: Vec<Piece> = Vec::with_capacity(named.len());
    for part in named {
        let number = part.part_number.ok_or_else(invalid)?;
        if parts.last().is_some_and(|before| before.number >= number) {
            return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
        }
        let found = there.iter().find(|piece| piece.number == number).ok_or_else(invalid)?;
        if part.e_tag.as_ref().is_none_or(|etag| etag.value() != found.md5) {
            return Err(invalid());
        }
        if found.checksums.check(&checksums_of!(part)).is_err() {
            return Err(invalid());
        }
        parts.push(found.clone());
    }
    let (_, but_last) = parts.split_last().ok_or_else(invalid)?;
    if but_last.iter().any(|part| part.size < MIN_PART) {
        return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
    }
    Ok(parts)
}

/// As S3 does: the MD5 of the parts' MD5s, and how many there were.
fn etag(parts: &[Piece]) -> S3Result<String> {
    let mut digest = Md5::new();
    for part in parts {
        digest.update(hex::decode(&part.md5).map_err(fault)?);
    }
    Ok(format!("{}-{}", hex::encode(digest.finalize()), parts.len()))
}

fn no_such_upload() -> S3Error {
    s3_error!(
        NoSuchUpload,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or \
         completed."
    )
}
