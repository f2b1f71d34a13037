//! What "the same request" means where a client's token says that it was sent before.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};

/// SHA-256 in hex of a request without its token.
pub fn digest(request: &impl Serialize) -> Result<String> {
    let mut value = serde_json::to_value(request)?;
    if let Some(members) = value.as_object_mut() {
        members.remove("clientRequestToken");
    }
    Ok(hex::encode(Sha256::digest(serde_json::to_vec(&value)?)))
}

/// The refusal of a token that came before with another request, where the contract has a conflict for it.
pub fn token_conflict() -> Error {
    Error::new(Kind::Conflict, "The clientRequestToken was used before with different parameters")
}
