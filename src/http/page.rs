//! Page tokens: opaque to callers, and bound to the account, the listing and its filters, so that a
//! token used elsewhere is refused instead of giving a page of something else. The digest inside is not
//! a secret: a forged token opens nothing that its forger's own listing would not show.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::store::Cursor;

const DIGEST_BYTES: usize = 16;
const HEAD_BYTES: usize = DIGEST_BYTES + 8;

/// The token that continues after `cursor`; `scope` is everything it is bound to.
pub fn write(cursor: &Cursor, scope: &[&str]) -> String {
    let mut bytes = digest(cursor, scope).to_vec();
    bytes.extend(cursor.creation_time.to_be_bytes());
    bytes.extend(cursor.id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What [`write()`] was given, if the scope is the same.
///
/// # Errors
/// `Validation` when the token was not made by [`write()`] for this scope.
pub fn read(token: &str, scope: &[&str]) -> Result<Cursor> {
    let invalid = || Error::validation("The nextToken is not valid: use it with the request that returned it");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let (head, id) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(invalid)?;
    let (claimed, time) = head.split_at(DIGEST_BYTES);
    let time = time.try_into().map_err(|_| invalid())?;
    let id = String::from_utf8(id.to_vec()).map_err(|_| invalid())?;
    // Whoever forges a token can compute its digest; no id of ours holds a control character.
    if id.chars().any(char::is_control) {
        return Err(invalid());
    }
    let cursor = Cursor { creation_time: i64::from_be_bytes(time), id };
    if digest(&cursor, scope) != claimed { Err(invalid()) } else { Ok(cursor) }
}

fn digest(cursor: &Cursor, scope: &[&str]) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha256::new();
    // Each part with its length: parts cannot run into each other.
    for part in scope.iter().copied().chain([cursor.id.as_str()]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(cursor.creation_time.to_be_bytes());
    let mut short = [0; DIGEST_BYTES];
    short.copy_from_slice(&hash.finalize()[..DIGEST_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_works_only_with_what_it_is_bound_to() {
        let cursor = Cursor { creation_time: 1_700_000_000_000, id: "abcdefghijkl".into() };
        let token = write(&cursor, &["000000000000", "jobs", "Completed"]);
        assert_eq!(read(&token, &["000000000000", "jobs", "Completed"]).unwrap(), cursor);
        for other in [["000000000001", "jobs", "Completed"], ["000000000000", "jobsC", "ompleted"]] {
            assert!(read(&token, &other).is_err());
        }
    }

    #[test]
    fn a_forged_token_with_a_nul_in_its_id_is_refused() {
        for id in ["a\0b", "\0", "a\nb"] {
            let forged = Cursor { creation_time: 1_700_000_000_000, id: id.into() };
            assert!(read(&write(&forged, &["000000000000"]), &["000000000000"]).is_err(), "{id:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_a_caller_sends_as_a_token_panics(token in "\\PC{0,80}") {
            prop_assert!(read(&token, &["000000000000"]).is_err());
        }
    }
}
