//! Uploads in parts. A part is a file of its own; completing an upload makes an object of the same
//! id out of the parts that are named, in one transaction and without copying a byte.

use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, CopyPartResult, CreateMultipartUploadInput, CreateMultipartUploadOutput, Range,
    UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3Request, S3Result, s3_error};
use sqlx::{Sqlite, Transaction};

use super::checksums::{Algorithm, announced};
use super::conditions::Reading;
use super::described::{describe, refuse_unsupported};
use super::digest::{Announced, checksums_of, set_checksums};
use super::index::{Described, Index, Piece, expect_bucket, fault, insert_piece, remove_pieces, stamp, tag};
use super::intake::{Taken, take};
use super::objects::{body, source};
use super::tags::from_header;

const PARTS: std::ops::RangeInclusive<i32> = 1..=10_000;

/// Which upload of which object.
pub(super) struct Which {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) id: String,
}

impl Index {
    pub(super) async fn create_upload(
        &self,
        input: CreateMultipartUploadInput,
    ) -> S3Result<CreateMultipartUploadOutput> {
        refuse_unsupported!(input);
        let checksum = announced(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
        let described = Described {
            checksum_algorithm: checksum.map(|(algorithm, _)| algorithm.name().to_string()),
            checksum_type: checksum.map(|(_, kind)| kind.to_string()),
            tags: from_header(input.tagging.as_deref())?,
            ..describe!(input)?
        };
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
            checksum_algorithm: described.checksum_algorithm.map(ChecksumAlgorithm::from),
            checksum_type: described.checksum_type.map(ChecksumType::from),
            ..CreateMultipartUploadOutput::default()
        })
    }

    pub(super) async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<UploadPartOutput> {
        let S3Request { input, headers, trailing_headers, .. } = request;
        let sums = checksums_of!(input);
        let length = input.content_length;
        let announced = Announced::new(input.content_md5.as_deref(), sums, length, trailing_headers, &headers)?;
        let which = Which { bucket: input.bucket, key: input.key, id: input.upload_id };
        let announced = announced.also(self.expect_upload(&which).await?);
        let taken = take(&self.files, input.body, announced).await?;
        let piece = self.store_part(which, input.part_number, taken).await?;
        let mut output = UploadPartOutput { e_tag: Some(tag(&piece.md5)), ..UploadPartOutput::default() };
        set_checksums!(output, piece.checksums);
        Ok(output)
    }

    pub(super) async fn upload_part_copy(&self, input: UploadPartCopyInput) -> S3Result<UploadPartCopyOutput> {
        let which = Which { bucket: input.bucket, key: input.key, id: input.upload_id };
        let checksum = self.expect_upload(&which).await?;
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
        let announced = Announced::default().also(checksum);
        let taken = take(&self.files, Some(body(self, held, range)), announced).await?;
        let piece = self.store_part(which, input.part_number, taken).await?;
        let mut result = CopyPartResult {
            e_tag: Some(tag(&piece.md5)),
            last_modified: Some(stamp(piece.modified)),
            ..CopyPartResult::default()
        };
        set_checksums!(result, piece.checksums);
        Ok(UploadPartCopyOutput { copy_part_result: Some(result), ..UploadPartCopyOutput::default() })
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

    /// The checksum that every part of an upload gets.
    async fn expect_upload(&self, which: &Which) -> S3Result<Option<Algorithm>> {
        let mut tx = self.pool.begin().await.map_err(fault)?;
        expect_bucket(&mut tx, &which.bucket).await?;
        let described = upload(&mut tx, which).await?.ok_or_else(no_such_upload)?;
        described.checksum_algorithm.as_deref().map(Algorithm::parse).transpose()
    }
}

/// What was said when the upload began, if it still is one of this very object.
pub(super) async fn upload(tx: &mut Transaction<'_, Sqlite>, which: &Which) -> S3Result<Option<Described>> {
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

pub(super) fn no_such_upload() -> S3Error {
    s3_error!(
        NoSuchUpload,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or \
         completed."
    )
}
