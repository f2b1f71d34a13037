//! Micro-batches of one step side by side. The operations of a small model are too short to be shared among
//! cores, and between those of a middling one every core but the first waits; whole passes leave nobody waiting.
//! How a batch is cut depends on the model, the batch and the kind of device alone and gradients are added in order, so
//! the number of cores changes no bit.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::TrainingDevice;
use crate::error::{Error, Result};
use crate::models::DecoderConfig;

/// The most parts of a batch by the weights of a layer. The more weights, the more rows a part needs to make reading
/// them worth while; a layer with more than the last keeps all cores busy by itself.
const PARTS: [(usize, usize); 2] = [(1 << 21, 16), (1 << 24, 4)];
/// Every part has gradients of its own until they are added: no more than this many values each.
const SMALL_GRADIENTS: usize = 1 << 24;

/// Into how many parts a batch is cut, so that cores can share it: 1 where operations are shared instead, and off the
/// CPU, since a device's stream has one order and parts would only make its passes shorter.
pub(super) fn parts(device: TrainingDevice, config: &DecoderConfig, trained: usize) -> usize {
    if device != TrainingDevice::Cpu {
        return 1;
    }
    let by_layer = PARTS.iter().find(|(weights, _)| config.layer_weights() <= *weights);
    by_layer.filter(|_| trained <= SMALL_GRADIENTS).map_or(1, |(_, parts)| *parts)
}

/// A pool of threads for every micro-batch under way: the operations inside share what cores fall to it.
pub(super) struct Lanes(Vec<ThreadPool>);

impl Lanes {
    /// So many, and at least one, over `cores` cores.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(super) fn open(count: usize, cores: usize) -> Result<Self> {
        let count = count.max(1);
        let lane = |at| {
            let threads = cores / count + usize::from(at < cores % count);
            ThreadPoolBuilder::new().num_threads(threads.max(1)).build().map_err(Error::internal)
        };
        Ok(Self((0..count).map(lane).collect::<Result<_>>()?))
    }

    /// `work` on the index of every item and the item; the results in the order of the items.
    pub(super) fn map<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
        if items.len() <= 1 {
            return items.iter().enumerate().map(|(index, item)| work(index, item)).collect();
        }
        let next = AtomicUsize::new(0);
        let take = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else { return done };
                done.push((index, work(index, item)));
            }
        };
        let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
            let lanes: Vec<_> =
                self.0.iter().take(items.len()).map(|lane| scope.spawn(|| lane.install(take))).collect();
            let joined =
                lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.flatten().collect()
        });
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items_whoever_made_them() {
        let items: Vec<usize> = (0..50).collect();
        for lanes in [1, 2, 5] {
            let lanes = Lanes::open(lanes, 5).unwrap();
            let seen = lanes.map(&items, |index, item| (index, *item));
            assert_eq!(seen, items.iter().map(|item| (*item, *item)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_core_belongs_to_one_lane() {
        for (lanes, threads) in [(1, vec![5]), (2, vec![3, 2]), (5, vec![1; 5]), (6, vec![1; 6])] {
            let lanes = Lanes::open(lanes, 5).unwrap();
            assert_eq!(lanes.0.iter().map(ThreadPool::current_num_threads).collect::<Vec<_>>(), threads);
        }
    }

    fn config(hidden: usize) -> DecoderConfig {
        let file = serde_json::json!({"model_type": "llama", "vocab_size": 100, "hidden_size": hidden,
            "intermediate_size": 3 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4});
        DecoderConfig::parse(&file.to_string()).unwrap()
    }

    #[test]
    fn a_large_layer_is_shared_by_its_operations_and_large_gradients_exist_once() {
        let parts = |hidden, trained| parts(TrainingDevice::Cpu, &config(hidden), trained);
        assert_eq!(parts(128, 1000), 16);
        assert_eq!(parts(576, 1000), 4);
        assert_eq!(parts(128, SMALL_GRADIENTS + 1), 1);
        assert_eq!(parts(2048, 1000), 1);
    }

    #[test]
    fn a_device_whose_stream_has_one_order_gets_a_batch_whole() {
        for hidden in [128, 576, 2048] {
            assert_eq!(parts(TrainingDevice::Cuda(0), &config(hidden), 1000), 1, "{hidden}");
        }
    }
}
