//! Keys and values of many sequences in one slab for each layer. A sequence has a room of adjacent rows,
//! the same in every layer; rooms are taken and given back as sequences join and leave, so what one layer's
//! attention reads never has to be put together again. The slab grows as it must, or has a size: then it never
//! moves, and on the CPU the system gives it memory only where something is written.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::kernels;
use crate::models::Memory;

/// The slab grows in steps of at least this many rows.
const STEP: usize = 256;

/// Rooms, and the tensors they lie in.
#[derive(Debug)]
pub(super) struct Rooms {
    /// Rows of the slab.
    rows: usize,
    /// The most rows, if there is a most.
    limit: Option<usize>,
    /// Rooms by their first row.
    taken: BTreeMap<usize, usize>,
    /// Keys and values of each layer, `[rows or fewer, kv_heads, head_dim]`: a layer grows when it is next written.
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl Rooms {
    /// None taken, for a decoder with this many layers.
    pub(super) fn new(layers: usize) -> Self {
        Self { rows: 0, limit: None, taken: BTreeMap::new(), layers: vec![None; layers] }
    }

    /// As [`Rooms::new`], in a slab of so many rows.
    pub(super) fn limited(layers: usize, rows: usize) -> Self {
        Self { limit: Some(rows), ..Self::new(layers) }
    }

    /// Whether a room, once taken, must do.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether there is a room of `length` rows now. Where nobody has one there always is, however long.
    pub(super) fn has(&self, length: usize) -> bool {
        self.taken.is_empty() || self.limit.is_none_or(|limit| self.gap(length) + length <= limit)
    }

    /// Where the first gap of `length` rows begins, which may be past the end.
    fn gap(&self, length: usize) -> usize {
        let mut start = 0;
        for (first, taken) in &self.taken {
            if first - start >= length {
                break;
            }
            start = first + taken;
        }
        start
    }

    /// Rows of the slab.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// A room of `length` rows: the first gap that has them, else new rows at the end.
    pub(super) fn take(&mut self, length: usize) -> Range<usize> {
        let start = self.gap(length);
        let room = start..start + length;
        if room.end > self.rows {
            let rows = room.end.next_multiple_of(STEP);
            self.rows = self.limit.map_or(rows.max(2 * self.rows), |limit| rows.max(limit));
        }
        self.taken.insert(room.start, length);
        room
    }

    /// Gives a room back; the memory of the slab too, when it was the last one.
    pub(super) fn leave(&mut self, room: &Range<usize>) {
        self.taken.remove(&room.start);
        if self.taken.is_empty() {
            self.rows = 0;
            self.layers.fill(None);
        }
    }

    /// Copies the first `held` rows of one room to another.
    pub(super) fn copy(&mut self, from: &Range<usize>, held: usize, to: &Range<usize>) -> Result<()> {
        for layer in 0..self.layers.len() {
            let Some((keys, values)) = &self.layers[layer] else { continue };
            let old = [keys, values].map(|all| all.narrow(0, from.start, held).and_then(|rows| rows.copy()));
            let [keys, values] = old;
            self.write(layer, &keys?, &values?, to.start)?;
        }
        Ok(())
    }

    /// Writes rows of one layer from row `at` of the slab on.
    fn write(&mut self, layer: usize, keys: &Tensor, values: &Tensor, at: usize) -> Result<()> {
        let (all_keys, all_values) = self.layer(layer, keys)?;
        all_keys.slice_set(&keys.contiguous()?, 0, at)?;
        all_values.slice_set(&values.contiguous()?, 0, at)
    }

    /// The slab of one layer, with all rows there are.
    fn layer(&mut self, layer: usize, like: &Tensor) -> Result<(Tensor, Tensor)> {
        // The old slab stays in its place until the new one is there: where the device has no memory for it, nothing is
        // lost.
        let grown = |old: Option<&Tensor>| -> Result<Tensor> {
            let (_, heads, width) = like.dims3()?;
            match old {
                Some(old) if old.dim(0)? >= self.rows => Ok(old.clone()),
                old => {
                    let new = Tensor::zeros((self.rows, heads, width), like.dtype(), like.device())?;
                    old.map_or(Ok(()), |old| new.slice_set(old, 0, 0))?;
                    Ok(new)
                }
            }
        };
        let all = match &self.layers[layer] {
            Some((keys, values)) => (grown(Some(keys))?, grown(Some(values))?),
            None => (grown(None)?, grown(None)?),
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }
}

/// One new token for each of some sequences; its row is the last of the sequence's place.
pub(super) struct Next<'a> {
    pub(super) rooms: &'a mut Rooms,
    pub(super) places: &'a [Range<usize>],
}

impl Memory for Next<'_> {
    fn is_empty(&self, _: usize) -> bool {
        false
    }

    fn extend(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let (all_keys, all_values) = self.rooms.layer(layer, keys)?;
        let (keys, values) = (keys.contiguous()?, values.contiguous()?);
        for (row, place) in self.places.iter().enumerate() {
            all_keys.slice_set(&keys.narrow(0, row, 1)?, 0, place.end - 1)?;
            all_values.slice_set(&values.narrow(0, row, 1)?, 0, place.end - 1)?;
        }
        let rows = self.rooms.rows;
        Ok((all_keys.narrow(0, 0, rows)?, all_values.narrow(0, 0, rows)?))
    }
}

/// Whole texts, each of which some sequences go on from: its keys and values are made once and copied into
/// the room of each.
pub(super) struct Whole<'a> {
    pub(super) rooms: &'a mut Rooms,
    /// Rows of each text, a soft prompt counted, a prefix not.
    pub(super) lengths: &'a [usize],
    /// For each text, the first rows of the rooms that take it.
    pub(super) takers: &'a [Vec<usize>],
    /// Whether a prefix comes before them.
    prefixed: bool,
    /// The prefix of each layer, once it came.
    prefixes: Vec<Option<(Tensor, Tensor)>>,
}

impl<'a> Whole<'a> {
    pub(super) fn new(rooms: &'a mut Rooms, lengths: &'a [usize], takers: &'a [Vec<usize>], prefixed: bool) -> Self {
        let prefixes = vec![None; rooms.layers.len()];
        Self { rooms, lengths, takers, prefixed, prefixes }
    }
}

impl Memory for Whole<'_> {
    fn is_empty(&self, layer: usize) -> bool {
        self.prefixes[layer].is_none()
    }

    fn extend(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.prefixed && self.prefixes[layer].is_none() {
            self.prefixes[layer] = Some((keys.detach(), values.detach()));
            return Ok((keys.clone(), values.clone()));
        }
        let (keys, values, lead) = match &self.prefixes[layer] {
            Some((first_keys, first_values)) => (
                kernels::lead(first_keys, keys, self.lengths)?,
                kernels::lead(first_values, values, self.lengths)?,
                first_keys.dim(0)?,
            ),
            None => (keys.clone(), values.clone(), 0),
        };
        let (keys, values) = (keys.detach().contiguous()?, values.detach().contiguous()?);
        let mut start = 0;
        for (length, takers) in self.lengths.iter().zip(self.takers) {
            let rows = lead + length;
            let (own_keys, own_values) = (keys.narrow(0, start, rows)?, values.narrow(0, start, rows)?);
            for at in takers {
                self.rooms.write(layer, &own_keys, &own_values, *at)?;
            }
            start += rows;
        }
        Ok((keys, values))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rows(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (values.len(), 1, 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_room_that_was_left_is_taken_again_before_the_slab_grows() {
        let mut rooms = Rooms::new(1);
        assert_eq!((rooms.take(100), rooms.take(50), rooms.take(100)), (0..100, 100..150, 150..250));
        assert_eq!(rooms.rows(), 256);
        rooms.leave(&(100..150));
        assert_eq!((rooms.take(60), rooms.take(30)), (250..310, 100..130));
        assert_eq!(rooms.rows(), 512);
        for room in [0..100, 100..130, 150..250, 250..310] {
            rooms.leave(&room);
        }
        assert_eq!(rooms.rows(), 0);
    }

    #[test]
    fn a_limited_slab_has_no_room_above_its_size_but_one_for_whoever_comes_alone() {
        let mut rooms = Rooms::limited(1, 512);
        assert!(rooms.has(9000));
        let first = rooms.take(300);
        assert_eq!(rooms.rows(), 512);
        assert!(rooms.has(212) && !rooms.has(213));
        let second = rooms.take(212);
        assert!(!rooms.has(1));
        rooms.leave(&first);
        assert!(rooms.has(300) && !rooms.has(301));
        rooms.leave(&second);
        assert_eq!((rooms.take(9000), rooms.rows() >= 9000), (0..9000, true));
    }

    #[test]
    fn what_lies_in_a_room_stays_when_the_slab_grows_and_moves_when_it_is_copied() {
        let mut rooms = Rooms::new(1);
        let first = rooms.take(2);
        rooms.write(0, &rows(&[1.0, 2.0]), &rows(&[3.0, 4.0]), first.start).unwrap();
        let second = rooms.take(1000);
        rooms.copy(&first, 2, &second).unwrap();
        let mut next = Next { rooms: &mut rooms, places: &[0..2, second.start..second.start + 3] };
        let (keys, values) = next.extend(0, &rows(&[7.0, 8.0]), &rows(&[9.0, 10.0])).unwrap();
        let read = |all: &Tensor, at: usize, count: usize| -> Vec<f32> {
            all.narrow(0, at, count).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!((read(&keys, 0, 2), read(&keys, second.start, 3)), (vec![1.0, 7.0], vec![1.0, 2.0, 8.0]));
        assert_eq!((read(&values, 0, 2), read(&values, second.start, 3)), (vec![3.0, 9.0], vec![3.0, 4.0, 10.0]));
        assert_eq!(keys.dim(0).unwrap(), rooms.rows());
    }
}
