//! Single objects: put, get, head, copy, delete.

use futures::TryStreamExt;
use s3s::dto::{
    ChecksumType, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectsInput,
    DeleteObjectsOutput, DeletedObject, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
    MetadataDirective, PutObjectInput, PutObjectOutput, StreamingBlob, TaggingDirective,
};
use s3s::{S3Request, S3Result, s3_error};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::checksums::Algorithm;
use super::conditions::{Reading, Writing};
use super::described::{describe, describe_again, refuse_unsupported};
use super::digest::{Announced, checksums_of, set_checksums};
use super::index::{
    Described, Held, Index, Object, Piece, expect_bucket, fault, find, insert_piece, point, remove, stamp, tag,
};
use super::intake::{Taken, take};
use super::tags::from_header;

/// Bytes read from a file at a time.
const CHUNK: usize = 256 << 10;
/// `DeleteObjects` takes at most this many.
const MAX_DELETES: usize = 1000;

impl Index {
    pub(super) async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<PutObjectOutput> {
        let S3Request { input, headers, trailing_headers, .. } = request;
        refuse_unsupported!(input);
        let writing = Writing { if_match: input.if_match.clone(), if_none_match: input.if_none_match.clone() };
        if input.write_offset_bytes.is_some() {
            return Err(s3_error!(NotImplemented, "Appending to an object is not implemented"));
        }
        let described = Described { tags: from_header(input.tagging.as_deref())?, ..describe!(input)? };
        let sums = checksums_of!(input);
        let length = input.content_length;
        let also = input.checksum_algorithm.as_ref().map(|name| Algorithm::parse(name.as_str())).transpose()?;
        let announced =
            Announced::new(input.content_md5.as_deref(), sums, length, trailing_headers, &headers)?.also(also);
        // Refused before gigabytes are taken in, and again in the transaction.
        self.expect_bucket(&input.bucket).await?;
        let taken = take(&self.files, input.body, announced).await?;
        let object = self.store(input.bucket, input.key, taken, described, writing).await?;
        let mut output = PutObjectOutput {
            e_tag: Some(tag(&object.etag)),
            size: i64::try_from(object.size).ok(),
            checksum_type: object.described.checksum_type.clone().map(ChecksumType::from),
            ..PutObjectOutput::default()
        };
        set_checksums!(output, object.described.checksums);
        Ok(output)
    }

    /// Points `key` at what was taken in. Runs to its end even when the client goes away meanwhile, so
    /// that the files of the replaced object are not forgotten.
    async fn store(
        &self,
        bucket: String,
        key: String,
        taken: Taken,
        described: Described,
        writing: Writing,
    ) -> S3Result<Object> {
        let index = self.clone();
        let stored = tokio::spawn(async move {
            let Taken { mut fresh, size, md5, checksums } = taken;
            let modified = index.clock.now();
            let md5 = hex::encode(md5);
            let object = Object {
                id: index.files.name(),
                size,
                etag: md5.clone(),
                modified,
                described: Described {
                    checksum_type: checksums.any().then(|| ChecksumType::FULL_OBJECT.to_string()),
                    checksums: checksums.clone(),
                    ..described
                },
            };
            let piece = Piece { file: fresh.name.clone(), number: 1, size, md5, modified, checksums };
            let mut tx = index.begin().await?;
            expect_bucket(&mut tx, &bucket).await?;
            writing.check(find(&mut tx, &bucket, &key).await?.as_ref())?;
            insert_piece(&mut tx, &object.id, &piece).await?;
            let gone = point(&mut tx, &bucket, &key, &object).await?;
            fresh.keep();
            index.commit(tx, gone).await?;
            Ok(object)
        });
        stored.await.map_err(fault)?
    }

    pub(super) async fn get_object(&self, input: GetObjectInput) -> S3Result<GetObjectOutput> {
        let held = self.hold(&input.bucket, &input.key).await?;
        let reading = Reading {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        let slice = reading.slice(&held, input.range, input.part_number, input.version_id.as_deref())?;
        let object = held.object.clone();
        let mut output = GetObjectOutput {
            body: Some(body(self, held, slice.range.clone())),
            content_length: i64::try_from(slice.range.end - slice.range.start).ok(),
            content_range: slice.content_range,
            parts_count: slice.parts_count,
            accept_ranges: Some("bytes".to_string()),
            e_tag: Some(tag(&object.etag)),
            last_modified: Some(stamp(object.modified)),
            ..GetObjectOutput::default()
        };
        describe_again!(output, object.described);
        output.tag_count = i32::try_from(object.described.tags.len()).ok().filter(|count| *count > 0);
        if input.checksum_mode.is_some() {
            let (checksums, kind) = slice.checksums;
            set_checksums!(output, checksums);
            output.checksum_type = kind.map(ChecksumType::from);
        }
        Ok(output)
    }

    /// With the number of tags, for which the output has no place.
    pub(super) async fn head_object(&self, input: HeadObjectInput) -> S3Result<(HeadObjectOutput, usize)> {
        let held = self.hold(&input.bucket, &input.key).await?;
        let reading = Reading {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        let slice = reading.slice(&held, input.range, input.part_number, input.version_id.as_deref())?;
        let object = held.object;
        let mut output = HeadObjectOutput {
            content_length: i64::try_from(slice.range.end - slice.range.start).ok(),
            content_range: slice.content_range,
            parts_count: slice.parts_count,
            accept_ranges: Some("bytes".to_string()),
            e_tag: Some(tag(&object.etag)),
            last_modified: Some(stamp(object.modified)),
            ..HeadObjectOutput::default()
        };
        describe_again!(output, object.described);
        if input.checksum_mode.is_some() {
            let (checksums, kind) = slice.checksums;
            set_checksums!(output, checksums);
            output.checksum_type = kind.map(ChecksumType::from);
        }
        Ok((output, object.described.tags.len()))
    }

    pub(super) async fn copy_object(&self, input: CopyObjectInput) -> S3Result<CopyObjectOutput> {
        refuse_unsupported!(input);
        let replace = input.metadata_directive.as_ref().is_some_and(|d| d.as_str() == MetadataDirective::REPLACE);
        let (bucket, key) = source(&input.copy_source)?;
        if (bucket, key) == (input.bucket.as_str(), input.key.as_str()) && !replace {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the \
                 object's metadata."
            ));
        }
        self.expect_bucket(&input.bucket).await?;
        let held = self.hold(bucket, key).await?;
        let reading = Reading {
            if_match: input.copy_source_if_match.clone(),
            if_none_match: input.copy_source_if_none_match.clone(),
            if_modified_since: input.copy_source_if_modified_since.clone(),
            if_unmodified_since: input.copy_source_if_unmodified_since.clone(),
        };
        reading.allows_copy(&held.object)?;
        let there = &held.object.described;
        let tags = match input.tagging_directive.as_ref().map(TaggingDirective::as_str) {
            Some(TaggingDirective::REPLACE) => from_header(input.tagging.as_deref())?,
            _ if input.tagging.is_some() => {
                return Err(s3_error!(InvalidRequest, "Tags are replaced only with x-amz-tagging-directive: REPLACE"));
            }
            _ => there.tags.clone(),
        };
        let described = Described { tags, ..if replace { describe!(input)? } else { there.clone() } };
        // Of the whole, also where the source's is of its parts.
        let wanted = match &input.checksum_algorithm {
            Some(name) => Some(Algorithm::parse(name.as_str())?),
            None => Algorithm::all_of(&there.checksums).next(),
        };
        let size = held.object.size;
        let announced = Announced::default().also(wanted);
        let taken = take(&self.files, Some(body(self, held, 0..size)), announced).await?;
        let object = self.store(input.bucket, input.key, taken, described, Writing::default()).await?;
        let mut result = CopyObjectResult {
            e_tag: Some(tag(&object.etag)),
            last_modified: Some(stamp(object.modified)),
            checksum_type: object.described.checksum_type.clone().map(ChecksumType::from),
            ..CopyObjectResult::default()
        };
        set_checksums!(result, object.described.checksums);
        Ok(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() })
    }

    /// Removes one key; one that is not there is removed already.
    pub(super) async fn delete_object(&self, bucket: String, key: String, writing: Writing) -> S3Result<()> {
        let index = self.clone();
        let deleted = tokio::spawn(async move {
            let mut tx = index.begin().await?;
            expect_bucket(&mut tx, &bucket).await?;
            if writing.any() {
                writing.check(find(&mut tx, &bucket, &key).await?.as_ref())?;
            }
            let gone = remove(&mut tx, &bucket, &key).await?;
            index.commit(tx, gone).await
        });
        deleted.await.map_err(fault)?
    }

    /// Removes up to a thousand keys in one transaction.
    pub(super) async fn delete_objects(&self, input: DeleteObjectsInput) -> S3Result<DeleteObjectsOutput> {
        if input.delete.objects.len() > MAX_DELETES || input.delete.objects.is_empty() {
            return Err(s3_error!(
                MalformedXML,
                "The XML you provided was not well-formed or did not validate against our published schema"
            ));
        }
        if input.delete.objects.iter().any(|o| {
            let conditional = o.e_tag.is_some() || o.last_modified_time.is_some() || o.size.is_some();
            conditional || o.version_id.as_deref().is_some_and(|v| v != "null")
        }) {
            return Err(s3_error!(NotImplemented, "Versions and conditional deletes of many keys are not implemented"));
        }
        let quiet = input.delete.quiet.unwrap_or(false);
        let keys: Vec<String> = input.delete.objects.into_iter().map(|object| object.key).collect();
        let (index, bucket, named) = (self.clone(), input.bucket, keys.clone());
        let deleted = tokio::spawn(async move {
            let mut tx = index.begin().await?;
            expect_bucket(&mut tx, &bucket).await?;
            let mut gone = Vec::new();
            for key in &named {
                gone.extend(remove(&mut tx, &bucket, key).await?);
            }
            index.commit(tx, gone).await
        });
        deleted.await.map_err(fault)??;
        let deleted = keys.into_iter().map(|key| DeletedObject { key: Some(key), ..DeletedObject::default() });
        Ok(DeleteObjectsOutput {
            deleted: Some(if quiet { Vec::new() } else { deleted.collect() }),
            ..DeleteObjectsOutput::default()
        })
    }
}

/// Bucket and key of a copy's source.
pub(super) fn source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, version_id } if version_id.as_deref().is_none_or(|v| v == "null") => {
            Ok((bucket, key))
        }
        _ => Err(s3_error!(NotImplemented, "Only /bucket/key can be copied from")),
    }
}

/// The bytes `range` of an object, piece after piece. The pin travels with the stream.
pub(super) fn body(index: &Index, held: Held, range: std::ops::Range<u64>) -> StreamingBlob {
    let Held { pieces, pin, .. } = held;
    let mut stretches = Vec::new();
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.size;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            stretches.push((piece.file, from - start, to - from));
        }
        start = end;
    }
    let files = std::sync::Arc::clone(&index.files);
    let open = move |(name, skip, length): (String, u64, u64)| -> std::io::Result<_> {
        // Also held by the closure, until the last stretch was read.
        let _pin = &pin;
        let mut file = files.read(&name)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(skip))?;
        let reader = tokio::fs::File::from_std(file).take(length);
        Ok(ReaderStream::with_capacity(reader, CHUNK))
    };
    StreamingBlob::wrap(futures::stream::iter(stretches.into_iter().map(open)).try_flatten())
}
