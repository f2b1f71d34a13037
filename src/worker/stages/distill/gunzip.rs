//! Unpacking of gzip that whoever packed it cannot use to fill a disk or to keep a worker busy for hours: so many
//! bytes for each packed one, and no more.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes that a packed byte may become. JSON Lines come to ten or twenty; the most that gzip can do is about 1,000.
const MAX_RATIO: u64 = 200;
/// Bytes that any file may become.
const FREE: u64 = 64 << 20;

/// A packed file as it is unpacked.
pub(super) struct Gunzip<R> {
    inner: MultiGzDecoder<R>,
    most: u64,
    left: u64,
}

impl<R: BufRead> Gunzip<R> {
    /// Of a file of `packed` bytes.
    pub(super) fn new(file: R, packed: u64) -> Self {
        let most = packed.saturating_mul(MAX_RATIO).max(FREE);
        Self { inner: MultiGzDecoder::new(file), most, left: most }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("it unpacks to more than {} bytes, which no log does", self.most))
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_logs_pack_to_is_unpacked_whole_and_several_members_are_one_file() {
        let mut packed = Vec::new();
        for part in ["first\n", "second\n"] {
            let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            member.write_all(part.as_bytes()).unwrap();
            packed.extend(member.finish().unwrap());
        }
        let mut text = String::new();
        Gunzip::new(packed.as_slice(), packed.len() as u64).read_to_string(&mut text).unwrap();
        assert_eq!(text, "first\nsecond\n");
    }
}
