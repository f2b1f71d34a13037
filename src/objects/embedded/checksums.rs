//! The checksum of an upload in parts: of the whole object where it can be had from the parts' own
//! (CRCs), of the parts' checksums otherwise.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use s3s::crypto::{Checksum, Crc32, Crc32c, Sha1, Sha256};
use s3s::dto::{ChecksumAlgorithm, ChecksumType};
use s3s::{S3Result, s3_error};

use super::crc::{CRC32, CRC32C, CRC64NVME, Crc};
use super::digest::Checksums;
use super::index::{Described, Piece, fault};

/// One of S3's algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => ChecksumAlgorithm::CRC32,
            Self::Crc32c => ChecksumAlgorithm::CRC32C,
            Self::Crc64Nvme => ChecksumAlgorithm::CRC64NVME,
            Self::Sha1 => ChecksumAlgorithm::SHA1,
            Self::Sha256 => ChecksumAlgorithm::SHA256,
        }
    }

    /// # Errors
    /// `InvalidRequest` for an algorithm that is not computed here.
    pub(super) fn parse(name: &str) -> S3Result<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            s3_error!(
                InvalidRequest,
                "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, \
                 CRC64NVME, SHA1, SHA256]"
            )
        })
    }

    /// The algorithms that `checksums` has values of.
    pub(super) fn all_of(checksums: &Checksums) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|algorithm| algorithm.value(checksums).is_some())
    }

    pub(super) fn value(self, checksums: &Checksums) -> Option<&str> {
        let value = match self {
            Self::Crc32 => &checksums.crc32,
            Self::Crc32c => &checksums.crc32c,
            Self::Crc64Nvme => &checksums.crc64nvme,
            Self::Sha1 => &checksums.sha1,
            Self::Sha256 => &checksums.sha256,
        };
        value.as_deref()
    }

    fn set(self, checksums: &mut Checksums, value: String) {
        let slot = match self {
            Self::Crc32 => &mut checksums.crc32,
            Self::Crc32c => &mut checksums.crc32c,
            Self::Crc64Nvme => &mut checksums.crc64nvme,
            Self::Sha1 => &mut checksums.sha1,
            Self::Sha256 => &mut checksums.sha256,
        };
        *slot = Some(value);
    }

    fn crc(self) -> Option<Crc> {
        match self {
            Self::Crc32 => Some(CRC32),
            Self::Crc32c => Some(CRC32C),
            Self::Crc64Nvme => Some(CRC64NVME),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Crc32 => Crc32::checksum(bytes).to_vec(),
            Self::Crc32c => Crc32c::checksum(bytes).to_vec(),
            Self::Crc64Nvme => s3s::crypto::Crc64Nvme::checksum(bytes).to_vec(),
            Self::Sha1 => Sha1::checksum(bytes).to_vec(),
            Self::Sha256 => Sha256::checksum(bytes).to_vec(),
        }
    }
}

/// What an upload says when it begins about its checksum: the algorithm and the kind.
///
/// # Errors
/// `InvalidRequest` for a kind that the algorithm does not have, or a kind without an algorithm.
pub(super) fn announced(
    algorithm: Option<&ChecksumAlgorithm>,
    kind: Option<&ChecksumType>,
) -> S3Result<Option<(Algorithm, &'static str)>> {
    let Some(algorithm) = algorithm else {
        return match kind {
            None => Ok(None),
            Some(_) => Err(s3_error!(
                InvalidRequest,
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
            )),
        };
    };
    let algorithm = Algorithm::parse(algorithm.as_str())?;
    let (composite, full) = (ChecksumType::COMPOSITE, ChecksumType::FULL_OBJECT);
    let possible: &[&'static str] = match algorithm {
        Algorithm::Crc64Nvme => &[full],
        Algorithm::Crc32 | Algorithm::Crc32c => &[composite, full],
        Algorithm::Sha1 | Algorithm::Sha256 => &[composite],
    };
    let kind = kind.map_or(possible[0], ChecksumType::as_str);
    let Some(kind) = possible.iter().find(|possible| **possible == kind) else {
        return Err(s3_error!(
            InvalidRequest,
            "The {kind} checksum type cannot be used with the {} checksum algorithm.",
            algorithm.name()
        ));
    };
    Ok(Some((algorithm, kind)))
}

/// Computes the checksum of an object out of `parts`, and compares it with what the client says it is.
///
/// # Errors
/// `BadDigest` when they differ; `InvalidRequest` for one that the upload did not announce.
pub(super) fn complete(
    described: &mut Described,
    parts: &[Piece],
    expected: &Checksums,
    expected_kind: Option<&ChecksumType>,
) -> S3Result<()> {
    let kind = described.checksum_type.clone();
    let kind = kind.as_deref();
    if expected_kind.is_some_and(|expected| kind.is_some_and(|kind| expected.as_str() != kind)) {
        return Err(s3_error!(
            InvalidRequest,
            "The checksum type differs from the one that the upload was begun with, {}",
            kind.unwrap_or_default()
        ));
    }
    let begun = described.checksum_algorithm.as_deref().map(Algorithm::parse).transpose()?;
    for algorithm in Algorithm::all_of(expected).chain(begun) {
        // Without an announcement a CRC of the whole can still be had, if every part came with its own.
        let composite = kind == Some(ChecksumType::COMPOSITE) || kind.is_none() && algorithm.crc().is_none();
        let Some(whole) = whole(algorithm, composite, parts)? else {
            if algorithm.value(expected).is_some() {
                return Err(s3_error!(
                    InvalidRequest,
                    "The upload was begun without the checksum algorithm {}, and its parts came without it",
                    algorithm.name()
                ));
            }
            continue;
        };
        if let Some(expected) = algorithm.value(expected) {
            let bare = whole.split_once('-').map_or(whole.as_str(), |(bare, _)| bare);
            if expected != whole && expected != bare {
                return Err(s3_error!(
                    BadDigest,
                    "The {} you specified did not match the calculated checksum.",
                    algorithm.name()
                ));
            }
        }
        algorithm.set(&mut described.checksums, whole);
        described.checksum_type =
            Some(if composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT }.to_string());
    }
    Ok(())
}

/// `None` when a part has no checksum of this kind.
fn whole(algorithm: Algorithm, composite: bool, parts: &[Piece]) -> S3Result<Option<String>> {
    let mut found = Vec::with_capacity(parts.len());
    for part in parts {
        let Some(value) = algorithm.value(&part.checksums) else { return Ok(None) };
        found.push((STANDARD.decode(value).map_err(fault)?, part.size));
    }
    if composite {
        let bytes: Vec<u8> = found.into_iter().flat_map(|(bytes, _)| bytes).collect();
        return Ok(Some(format!("{}-{}", STANDARD.encode(algorithm.of(&bytes)), parts.len())));
    }
    let Some(crc) = algorithm.crc() else { return Ok(None) };
    let value = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let whole = found
        .iter()
        .map(|(bytes, size)| (value(bytes), *size))
        .reduce(|(first, size), (second, length)| (crc.combine(first, second, length), size + length));
    Ok(whole.map(|(whole, _)| STANDARD.encode(&whole.to_be_bytes()[8 - crc.bytes()..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announce(algorithm: Option<&'static str>, kind: Option<&'static str>) -> Result<Option<&'static str>, String> {
        let algorithm = algorithm.map(ChecksumAlgorithm::from_static);
        let kind = kind.map(ChecksumType::from_static);
        let found = announced(algorithm.as_ref(), kind.as_ref());
        found.map(|found| found.map(|(_, kind)| kind)).map_err(|error| error.code().as_str().to_string())
    }

    #[test]
    fn an_algorithm_has_the_kinds_that_it_has_on_s3() {
        for (algorithm, kind, found) in [
            (None, None, Ok(None)),
            (None, Some("FULL_OBJECT"), Err("InvalidRequest".to_string())),
            (Some("CRC32"), None, Ok(Some("COMPOSITE"))),
            (Some("CRC32C"), Some("FULL_OBJECT"), Ok(Some("FULL_OBJECT"))),
            (Some("CRC64NVME"), None, Ok(Some("FULL_OBJECT"))),
            (Some("CRC64NVME"), Some("COMPOSITE"), Err("InvalidRequest".to_string())),
            (Some("SHA256"), None, Ok(Some("COMPOSITE"))),
            (Some("SHA1"), Some("FULL_OBJECT"), Err("InvalidRequest".to_string())),
            (Some("MD4"), None, Err("InvalidRequest".to_string())),
        ] {
            assert_eq!(announce(algorithm, kind), found, "{algorithm:?} {kind:?}");
        }
    }
}
