//! GetObjectAttributes: what is known of an object and of its parts, without its bytes.

use s3s::dto::{
    Checksum, ChecksumType, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectAttributesParts,
    ObjectAttributes, ObjectPart, StorageClass,
};
use s3s::{S3Result, s3_error};

use super::digest::set_checksums;
use super::index::{Held, Index, stamp, tag};
use super::listing::limit;

impl Index {
    pub(super) async fn attributes(&self, input: GetObjectAttributesInput) -> S3Result<GetObjectAttributesOutput> {
        if input.version_id.as_deref().is_some_and(|version| version != "null") {
            return Err(s3_error!(NoSuchVersion, "The specified version does not exist."));
        }
        let held = self.hold(&input.bucket, &input.key).await?;
        // One header may name several.
        let names = input.object_attributes.iter().flat_map(|names| names.as_str().split(','));
        let names: Vec<_> = names.map(str::trim).collect();
        let wants = |name: &str| names.contains(&name);
        let object = &held.object;
        let described = &object.described;
        let mut output = GetObjectAttributesOutput {
            last_modified: Some(stamp(object.modified)),
            ..GetObjectAttributesOutput::default()
        };
        if wants(ObjectAttributes::ETAG) {
            output.e_tag = Some(tag(&object.etag));
        }
        if wants(ObjectAttributes::OBJECT_SIZE) {
            output.object_size = i64::try_from(object.size).ok();
        }
        if wants(ObjectAttributes::STORAGE_CLASS) {
            output.storage_class = Some(StorageClass::from_static(StorageClass::STANDARD));
        }
        if wants(ObjectAttributes::CHECKSUM) && described.checksums.any() {
            let mut checksum = Checksum {
                checksum_type: described.checksum_type.clone().map(ChecksumType::from),
                ..Checksum::default()
            };
            set_checksums!(checksum, described.checksums.clone());
            output.checksum = Some(checksum);
        }
        if wants(ObjectAttributes::OBJECT_PARTS) && object.etag.contains('-') {
            output.object_parts = Some(parts(&held, input.max_parts, input.part_number_marker)?);
        }
        Ok(output)
    }
}

fn parts(held: &Held, most: Option<i32>, marker: Option<i32>) -> S3Result<GetObjectAttributesParts> {
    let (limit, after) = (limit(most)?, marker.unwrap_or(0));
    let count = i32::try_from(held.pieces.len()).ok();
    let mut parts = Vec::new();
    // As S3 does: parts are told one by one only where they have checksums of their own.
    if held.pieces.iter().all(|piece| piece.checksums.any()) {
        for piece in held.pieces.iter().filter(|piece| piece.number > after).take(limit + 1) {
            let mut part = ObjectPart {
                part_number: Some(piece.number),
                size: i64::try_from(piece.size).ok(),
                ..ObjectPart::default()
            };
            set_checksums!(part, piece.checksums.clone());
            parts.push(part);
        }
    }
    let more = parts.len() > limit;
    parts.truncate(limit);
    Ok(GetObjectAttributesParts {
        is_truncated: Some(more),
        max_parts: i32::try_from(limit).ok(),
        part_number_marker: Some(after),
        next_part_number_marker: parts.last().and_then(|part| part.part_number).filter(|_| more),
        total_parts_count: count,
        parts: (!parts.is_empty()).then_some(parts),
    })
}
