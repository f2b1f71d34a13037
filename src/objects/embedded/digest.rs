//! The digests of a body: what the client announced, what arrived, and whether they agree.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::{S3Result, TrailingHeaders, s3_error};
use serde::{Deserialize, Serialize};

use super::checksums::Algorithm;
use super::index::custom;

/// S3's `x-amz-checksum-*` values, base64.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Checksums {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crc32: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crc32c: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crc64nvme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sha1: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
}

/// Collects the five fields that several of `s3s`'s inputs share.
macro_rules! checksums_of {
    ($input:expr) => {
        $crate::objects::embedded::digest::Checksums {
            crc32: $input.checksum_crc32.clone(),
            crc32c: $input.checksum_crc32c.clone(),
            crc64nvme: $input.checksum_crc64nvme.clone(),
            sha1: $input.checksum_sha1.clone(),
            sha256: $input.checksum_sha256.clone(),
        }
    };
}
/// Sets the same five fields in an output.
macro_rules! set_checksums {
    ($output:expr, $checksums:expr) => {{
        let checksums = $checksums;
        $output.checksum_crc32 = checksums.crc32;
        $output.checksum_crc32c = checksums.crc32c;
        $output.checksum_crc64nvme = checksums.crc64nvme;
        $output.checksum_sha1 = checksums.sha1;
        $output.checksum_sha256 = checksums.sha256;
    }};
}
pub(super) use {checksums_of, set_checksums};

impl Checksums {
    /// Name of each, as in its header after `x-amz-checksum-`, with its value.
    fn named(&self) -> [(&'static str, &Option<String>); 5] {
        [
            ("crc32", &self.crc32),
            ("crc32c", &self.crc32c),
            ("crc64nvme", &self.crc64nvme),
            ("sha1", &self.sha1),
            ("sha256", &self.sha256),
        ]
    }

    /// Whether any is given.
    pub(super) fn any(&self) -> bool {
        self.named().iter().any(|(_, value)| value.is_some())
    }

    /// Refuses when one of `announced` differs from what was computed here.
    pub(super) fn check(&self, announced: &Self) -> S3Result<()> {
        for ((name, computed), (_, announced)) in self.named().iter().zip(announced.named()) {
            if announced.is_some() && *computed != announced {
                return Err(s3_error!(BadDigest, "The {name} you specified did not match the calculated checksum."));
            }
        }
        Ok(())
    }
}

/// What a client says about its body.
#[derive(Default)]
pub(super) struct Announced {
    /// From `Content-MD5`.
    md5: Option<[u8; 16]>,
    /// From headers.
    checksums: Checksums,
    /// Values that come after the body, and the header that names them.
    trailers: Option<(TrailingHeaders, String)>,
    /// Computed though nothing is announced of it.
    also: Option<Algorithm>,
    /// Bytes.
    pub(super) length: Option<u64>,
}

impl Announced {
    /// # Errors
    /// `InvalidDigest` when `Content-MD5` is no MD5.
    pub(super) fn new(
        md5: Option<&str>,
        checksums: Checksums,
        length: Option<i64>,
        trailers: Option<TrailingHeaders>,
        headers: &hyper::HeaderMap,
    ) -> S3Result<Self> {
        let md5 = match md5 {
            None => None,
            Some(text) => {
                let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
                Some(bytes.ok_or_else(|| s3_error!(InvalidDigest, "The Content-MD5 you specified was invalid."))?)
            }
        };
        let names: Vec<_> = headers.get_all("x-amz-trailer").iter().filter_map(|value| value.to_str().ok()).collect();
        let trailers = trailers.map(|trailers| (trailers, names.join(",").to_ascii_lowercase()));
        let length = length.and_then(|length| u64::try_from(length).ok());
        Ok(Self { md5, checksums, trailers, also: None, length })
    }

    /// Asks for a checksum of which nothing may be announced.
    pub(super) fn also(mut self, algorithm: Option<Algorithm>) -> Self {
        self.also = algorithm;
        self
    }

    /// The digests that have to be computed while the body passes.
    pub(super) fn hasher(&self) -> Hasher {
        let trailing = self.trailers.as_ref().map_or("", |(_, names)| names.as_str());
        let wants = |name: &str, value: &Option<String>| {
            let header = format!("x-amz-checksum-{name}");
            value.is_some()
                || trailing.split(',').any(|trailer| trailer.trim() == header)
                || self.also.is_some_and(|also| also.name().eq_ignore_ascii_case(name))
        };
        let sums = &self.checksums;
        Hasher {
            md5: Md5::new(),
            sums: ChecksumHasher {
                crc32: wants("crc32", &sums.crc32).then(Crc32::new),
                crc32c: wants("crc32c", &sums.crc32c).then(Crc32c::new),
                crc64nvme: wants("crc64nvme", &sums.crc64nvme).then(Crc64Nvme::new),
                sha1: wants("sha1", &sums.sha1).then(Sha1::new),
                sha256: wants("sha256", &sums.sha256).then(Sha256::new),
            },
        }
    }

    /// Compares, once the body has passed, and says what an object's row keeps.
    ///
    /// # Errors
    /// `BadDigest` when anything differs from what was announced.
    pub(super) fn check(&self, hasher: Hasher) -> S3Result<([u8; 16], Checksums)> {
        let md5: [u8; 16] = hasher.md5.finalize().into();
        if self.md5.is_some_and(|announced| announced != md5) {
            return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received."));
        }
        let finished = hasher.sums.finalize();
        let computed = checksums_of!(finished);
        computed.check(&self.checksums)?;
        if let Some((trailers, names)) = &self.trailers {
            let sent = trailers.take().unwrap_or_default();
            let promised = names.split(',').map(str::trim).filter(|name| name.starts_with("x-amz-checksum-"));
            for name in promised {
                Algorithm::parse(&name["x-amz-checksum-".len()..])?;
                if !sent.contains_key(name) {
                    return Err(custom(
                        "MalformedTrailerError",
                        hyper::StatusCode::BAD_REQUEST,
                        "The request contained trailing data that was not well-formed or did not conform to our published \
                         schema.",
                    ));
                }
            }
            let sent = |name: &str| {
                let value = sent.get(format!("x-amz-checksum-{name}"))?;
                value.to_str().ok().map(str::to_string)
            };
            let announced = Checksums {
                crc32: sent("crc32"),
                crc32c: sent("crc32c"),
                crc64nvme: sent("crc64nvme"),
                sha1: sent("sha1"),
                sha256: sent("sha256"),
            };
            computed.check(&announced)?;
        }
        Ok((md5, computed))
    }
}

/// Digests in the making.
pub(super) struct Hasher {
    md5: Md5,
    sums: ChecksumHasher,
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sums.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(md5: Option<&str>, checksums: Checksums) -> S3Result<Announced> {
        Announced::new(md5, checksums, None, None, &hyper::HeaderMap::new())
    }

    fn hashed(announced: &Announced, bytes: &[u8]) -> Hasher {
        let mut hasher = announced.hasher();
        hasher.update(bytes);
        hasher
    }

    #[test]
    fn right_digests_pass_and_are_kept() {
        // Computed with coreutils and zlib for "hello".
        let sums = Checksums {
            crc32: Some("NhCmhg==".into()),
            sha256: Some("LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=".into()),
            ..Checksums::default()
        };
        let announced = announced(Some("XUFAKrxLKna5cZ2REBfFkg=="), sums.clone()).unwrap();
        let (md5, kept) = announced.check(hashed(&announced, b"hello")).unwrap();
        assert_eq!(hex::encode(md5), "5d41402abc4b2a76b9719d911017c592");
        assert_eq!(kept, sums);
    }

    #[test]
    fn a_wrong_digest_of_any_kind_is_refused() {
        let right = announced(Some("XUFAKrxLKna5cZ2REBfFkg=="), Checksums::default()).unwrap();
        assert!(right.check(hashed(&right, b"hellO")).is_err());
        for sums in [
            Checksums { crc32: Some("NhCmhg==".into()), ..Checksums::default() },
            Checksums { crc32c: Some("AAAAAA==".into()), ..Checksums::default() },
            Checksums { crc64nvme: Some("AAAAAAAAAAA=".into()), ..Checksums::default() },
            Checksums { sha1: Some("AAAA".into()), ..Checksums::default() },
            Checksums { sha256: Some("AAAA".into()), ..Checksums::default() },
        ] {
            let announced = announced(None, sums).unwrap();
            let error = announced.check(hashed(&announced, b"hellO")).unwrap_err();
            assert_eq!(error.code().as_str(), "BadDigest");
        }
        assert_eq!(
            announced(Some("bm90IG1kNQ=="), Checksums::default()).err().unwrap().code().as_str(),
            "InvalidDigest"
        );
    }
}
