//! The end of an upload in parts: those that the client names become an object, in one transaction
//! and without copying a byte.

use md5::{Digest, Md5};
use s3s::dto::{ChecksumType, CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart};
use s3s::{S3Result, s3_error};

use super::checksums;
use super::conditions::Writing;
use super::digest::{Checksums, checksums_of, set_checksums};
use super::index::{Index, Object, Piece, expect_bucket, fault, find, pieces, point, tag};
use super::listing::url;
use super::multipart::{Which, no_such_upload, upload};

/// Every part but the last has at least this many bytes.
const MIN_PART: u64 = 5 << 20;

/// What the client says of the object that the parts become.
struct Expected {
    checksums: Checksums,
    checksum_type: Option<ChecksumType>,
    size: Option<i64>,
}

impl Index {
    pub(super) async fn complete_upload(
        &self,
        input: CompleteMultipartUploadInput,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        let expected = Expected {
            checksums: checksums_of!(input),
            checksum_type: input.checksum_type,
            size: input.mpu_object_size,
        };
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let writing = Writing { if_match: input.if_match, if_none_match: input.if_none_match };
        let which = Which { bucket: input.bucket.clone(), key: input.key.clone(), id: input.upload_id };
        let index = self.clone();
        let completed = tokio::spawn(async move { index.complete(which, named, writing, expected).await });
        let object = completed.await.map_err(fault)??;
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, url(&input.key))),
            e_tag: Some(tag(&object.etag)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            checksum_type: object.described.checksum_type.map(ChecksumType::from),
            ..CompleteMultipartUploadOutput::default()
        };
        set_checksums!(output, object.described.checksums);
        Ok(output)
    }

    async fn complete(
        &self,
        which: Which,
        named: Vec<CompletedPart>,
        writing: Writing,
        expected: Expected,
    ) -> S3Result<Object> {
        let mut tx = self.begin().await?;
        expect_bucket(&mut tx, &which.bucket).await?;
        let there = find(&mut tx, &which.bucket, &which.key).await?;
        let Some(mut described) = upload(&mut tx, &which).await? else {
            // A client that did not hear the answer asks again: the object of this upload is the answer.
            return there.filter(|object| object.id == which.id).ok_or_else(no_such_upload);
        };
        writing.check(there.as_ref())?;
        let parts = chosen(&pieces(&mut tx, &which.id).await?, &named)?;
        let size = parts.iter().map(|part| part.size).sum();
        if expected.size.is_some_and(|expected| i64::try_from(size) != Ok(expected)) {
            return Err(s3_error!(InvalidRequest, "The size of the parts differs from x-amz-mp-object-size"));
        }
        checksums::complete(&mut described, &parts, &expected.checksums, expected.checksum_type.as_ref())?;
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
