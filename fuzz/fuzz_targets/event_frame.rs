//! Frames of event streams, by the crate that streams are read and written with: bytes that are read as a message
//! are the bytes that writing it gives.
#![no_main]

use aws_smithy_eventstream::frame::{read_message_from, write_message_to};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    if let Ok(message) = read_message_from(&mut rest) {
        let mut written = Vec::new();
        if write_message_to(&message, &mut written).is_ok() {
            assert_eq!(read_message_from(&mut written.as_slice()).ok(), Some(message));
        }
    }
});
