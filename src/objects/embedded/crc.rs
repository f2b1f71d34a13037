//! The CRC of a whole from those of its parts: appending bytes multiplies a remainder by a power of
//! x, so the bytes themselves need not be read again.

/// A reflected CRC whose register begins and ends inverted, as all of S3's do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crc {
    width: u32,
    /// The polynomial, its lowest power in the highest bit.
    polynomial: u64,
}

pub(super) const CRC32: Crc = Crc { width: 32, polynomial: 0xedb8_8320 };
pub(super) const CRC32C: Crc = Crc { width: 32, polynomial: 0x82f6_3b78 };
pub(super) const CRC64NVME: Crc = Crc { width: 64, polynomial: 0x9a6c_9329_ac4b_c9b5 };

impl Crc {
    /// Bytes of a checksum.
    pub(super) fn bytes(self) -> usize {
        self.width as usize / 8
    }

    /// The checksum of `first` followed by `second`, which is `length` bytes long. The inversions at the
    /// beginning and the end cancel out.
    pub(super) fn combine(self, first: u64, second: u64, length: u64) -> u64 {
        self.multiply(first, self.power(length)) ^ second
    }

    /// x to the power of eight times `bytes`.
    fn power(self, mut bytes: u64) -> u64 {
        let one = 1 << (self.width - 1);
        let mut square = one >> 8;
        let mut result = one;
        while bytes > 0 {
            if bytes & 1 == 1 {
                result = self.multiply(result, square);
            }
            square = self.multiply(square, square);
            bytes >>= 1;
        }
        result
    }

    /// The product of two polynomials, modulo the CRC's.
    fn multiply(self, a: u64, mut b: u64) -> u64 {
        let mut product = 0;
        for bit in (0..self.width).rev() {
            if a >> bit & 1 == 1 {
                product ^= b;
            }
            b = if b & 1 == 1 { b >> 1 ^ self.polynomial } else { b >> 1 };
        }
        product
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use s3s::crypto::{Checksum, Crc32, Crc32c, Crc64Nvme};

    use super::*;

    fn of<C: Checksum>(mut digest: C, bytes: &[u8]) -> u64
    where
        C::Output: AsRef<[u8]>,
    {
        digest.update(bytes);
        digest.finalize().as_ref().iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    proptest! {
        #[test]
        fn the_checksum_of_a_whole_is_that_of_its_parts(first: Vec<u8>, second: Vec<u8>) {
            let whole = [first.clone(), second.clone()].concat();
            let length = second.len() as u64;
            prop_assert_eq!(
                CRC32.combine(of(Crc32::new(), &first), of(Crc32::new(), &second), length),
                of(Crc32::new(), &whole)
            );
            prop_assert_eq!(
                CRC32C.combine(of(Crc32c::new(), &first), of(Crc32c::new(), &second), length),
                of(Crc32c::new(), &whole)
            );
            prop_assert_eq!(
                CRC64NVME.combine(of(Crc64Nvme::new(), &first), of(Crc64Nvme::new(), &second), length),
                of(Crc64Nvme::new(), &whole)
            );
        }
    }
}
