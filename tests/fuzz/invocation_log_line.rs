//! Lines of invocation logs and of prompts: whatever one holds, it is a prompt or a fault that says why.

use tunesmith::data::{Asked, Logged};

/// Takes any bytes.
pub(crate) fn body(bytes: &[u8]) {
    let Ok(line) = std::str::from_utf8(bytes) else { return };
    for fault in [Logged::parse(line).err(), Asked::parse(line).err()].into_iter().flatten() {
        assert!(!fault.reason.is_empty());
    }
}
