//! What "the same request" means where a client's token says that it was sent before.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::Result;

/// SHA-256 in hex of a request without its token.
pub fn digest(request: &impl Serialize) -> Result<String> {
    let mut value = serde_json::to_value(request)?;
    if let Some(members) = value.as_object_mut() {
        members.remove("clientRequestToken");
    }
    Ok(hex::encode(Sha256::digest(serde_json::to_vec(&value)?)))
}
