//! The only place that reads the time or draws an id, a key or a seed. A [`Clock`] is a field of
//! whatever needs one, so a test can stop time, move it, or make every id predictable.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, as stored in every table.
pub type Millis = i64;

/// Where time and chance come from.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Milliseconds added to the wall clock: tests make it jump; production leaves it at zero.
    offset_ms: Arc<AtomicI64>,
    /// Milliseconds added to the database's clock, for the same reason.
    database_ms: Arc<AtomicI64>,
    /// Milliseconds added to the monotonic clock, for the same reason.
    monotonic_ms: Arc<AtomicU64>,
}

/// The database's own clock, which leases run by. A statement reads it where it is executed, so no
/// machine's wall clock decides who holds a job; what is kept here is only how far tests have moved it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatabaseTime {
    shift_ms: Millis,
    /// Nobody's lease counts as run out.
    tolerant: bool,
}

/// Older than any lease.
const WITHOUT_END: Millis = Millis::MAX / 4;

impl DatabaseTime {
    /// Milliseconds that a statement adds to the time it reads; zero outside of tests.
    pub fn shift_ms(self) -> Millis {
        self.shift_ms
    }

    /// Milliseconds that a statement adds to the time it reads before it judges whether a lease has run out.
    pub fn expiry_shift_ms(self) -> Millis {
        if self.tolerant { self.shift_ms - WITHOUT_END } else { self.shift_ms }
    }

    /// The same time, by which no lease runs out: only what was given back is free.
    #[must_use]
    pub fn tolerant(self, tolerant: bool) -> Self {
        Self { tolerant, ..self }
    }
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// Wall-clock time in milliseconds.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX) + self.offset_ms.load(Ordering::Relaxed)
    }

    /// Monotonic time: what durations are measured with, because the wall clock may jump.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    pub fn monotonic(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.monotonic_ms.load(Ordering::Relaxed))
    }

    /// What statements over leases take instead of a time of ours.
    pub fn database(&self) -> DatabaseTime {
        DatabaseTime { shift_ms: self.database_ms.load(Ordering::Relaxed), tolerant: false }
    }

    /// Moves the wall clock of every clone of this clock; for tests.
    pub fn jump(&self, by: Duration, backwards: bool) {
        shift(&self.offset_ms, by, backwards);
    }

    /// Moves the database's clock as every clone of this clock sees it; for tests.
    pub fn jump_database(&self, by: Duration, backwards: bool) {
        shift(&self.database_ms, by, backwards);
    }

    /// Lets time pass on the monotonic clock of every clone of this clock; for tests.
    pub fn pass(&self, time: Duration) {
        self.monotonic_ms.fetch_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Twelve characters of `[a-z0-9]`, the tail of every Bedrock ARN.
    pub fn id(&self) -> String {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        // 252 is the largest multiple of 36 below 256: bytes above it are redrawn, so all ids are equally likely.
        let mut id = String::with_capacity(12);
        while id.len() < 12 {
            for byte in self.random::<16>() {
                if byte < 252 && id.len() < 12 {
                    id.push(char::from(ALPHABET[usize::from(byte % 36)]));
                }
            }
        }
        id
    }

    /// A version-4 UUID, used for request ids and for idempotency tokens we make ourselves.
    pub fn uuid(&self) -> String {
        let mut bytes = self.random::<16>();
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let text = hex::encode(bytes);
        format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
    }

    /// A seed for a job that named none; it is recorded in the manifest, so the run can be repeated.
    pub fn seed(&self) -> u64 {
        // 53 bits survive a trip through JSON numbers.
        u64::from_le_bytes(self.random::<8>()) >> 11
    }

    /// `N` bytes from the operating system's generator, for keys and ids.
    ///
    /// # Panics
    /// When the operating system has no source of randomness: nothing safe can be done without one.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        #[expect(clippy::expect_used, reason = "without entropy no key is safe")]
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        bytes
    }
}

fn shift(offset_ms: &AtomicI64, by: Duration, backwards: bool) {
    let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    offset_ms.fetch_add(if backwards { -millis } else { millis }, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_twelve_lower_case_letters_or_digits() {
        let clock = Clock::system();
        for _ in 0..100 {
            let id = clock.id();
            assert_eq!(id.len(), 12);
            assert!(id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
        }
    }

    #[test]
    fn a_clock_jumps_for_all_its_clones() {
        let clock = Clock::system();
        let clone = clock.clone();
        let before = clone.now();
        clock.jump(Duration::from_secs(3600), false);
        assert!(clone.now() >= before + 3_600_000);
    }

    #[test]
    fn time_passes_for_all_clones_of_a_clock() {
        let clock = Clock::system();
        let before = clock.clone().monotonic();
        clock.pass(Duration::from_secs(3600));
        assert!(clock.clone().monotonic() - before >= Duration::from_secs(3600));
    }

    #[test]
    fn a_jump_of_the_wall_clock_leaves_the_databases_clock_alone() {
        let clock = Clock::system();
        clock.jump(Duration::from_secs(3600), false);
        assert_eq!(clock.database(), DatabaseTime::default());
        clock.jump_database(Duration::from_secs(2), true);
        assert_eq!(clock.clone().database().shift_ms(), -2000);
    }
}
