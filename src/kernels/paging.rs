//! How the optimizer's moments are cut into pages where they live in the host's memory and visit a device: the
//! values of all tensors lie end to end, and every page holds so many of them, first their means, then their
//! mean squares. Plain arithmetic, by which the planner counts and the device works.

/// Bytes that the two moments of a value take.
const MOMENTS: u64 = 8;

/// The cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// Values of a page; the last one may have fewer.
    pub page: usize,
    /// The most pages that are on the device at a time.
    pub buffers: usize,
}

impl Paging {
    /// Pages of 32 MiB, which keep a bus busy for so long that what a launch costs does not show. Three of them,
    /// so that one is on its way in and one on its way out while one is worked on: a bus carries both ways at once.
    pub const USUAL: Self = Self { page: 4 << 20, buffers: 3 };

    /// Bytes of the device's memory that pages of so many values in all take: no more buffers than pages.
    pub fn device_bytes(self, values: u64) -> u64 {
        let page = (self.page as u64).min(values);
        values.div_ceil(self.page.max(1) as u64).min(self.buffers as u64) * page * MOMENTS
    }

    /// Bytes of the host's memory that they take, page-locked.
    pub fn host_bytes(values: u64) -> u64 {
        values * MOMENTS
    }

    /// Values of each page, of so many in all.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn pages(self, values: usize) -> impl Iterator<Item = usize> {
        let page = self.page.max(1);
        (0..values.div_ceil(page)).map(move |number| page.min(values - number * page))
    }

    /// What of each page belongs to a tensor of `len` values that begins at `start` of all values.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn pieces(self, start: usize, len: usize) -> impl Iterator<Item = Piece> {
        let (page, end) = (self.page.max(1), start + len);
        let pages = if len == 0 { 0..0 } else { start / page..end.div_ceil(page) };
        pages.map(move |number| {
            let (from, to) = (start.max(number * page), end.min((number + 1) * page));
            Piece { page: number, in_page: from - number * page, in_tensor: from - start, len: to - from }
        })
    }
}

/// A stretch of a tensor that lies in one page.
#[cfg(any(test, feature = "cuda"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// The number of the page.
    pub(super) page: usize,
    /// Where it begins among the page's values.
    pub(super) in_page: usize,
    /// Where it begins among the tensor's values.
    pub(super) in_tensor: usize,
    pub(super) len: usize,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_lies_in_one_place_of_one_page_and_the_bytes_are_counted(
            page in 1usize..9,
            buffers in 1usize..5,
            lens in prop::collection::vec(0usize..30, 1..6),
        ) {
            let (paging, total) = (Paging { page, buffers }, lens.iter().sum::<usize>());
            let sizes: Vec<usize> = paging.pages(total).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), total);
            let mut taken: Vec<Vec<bool>> = sizes.iter().map(|size| vec![false; *size]).collect();
            let mut start = 0;
            for len in lens {
                let mut next = 0;
                for piece in paging.pieces(start, len) {
                    prop_assert_eq!(piece.in_tensor, next);
                    next += piece.len;
                    for taken in &mut taken[piece.page][piece.in_page..piece.in_page + piece.len] {
                        prop_assert!(!std::mem::replace(taken, true));
                    }
                }
                prop_assert_eq!(next, len);
                start += len;
            }
            prop_assert!(taken.iter().flatten().all(|taken| *taken));
            let largest = sizes.iter().max().copied().unwrap_or(0);
            prop_assert_eq!(paging.device_bytes(total as u64), (8 * largest * sizes.len().min(buffers)) as u64);
            prop_assert_eq!(Paging::host_bytes(total as u64), 8 * total as u64);
        }
    }
}
