//! The walls between accounts, as far as a request can tell: every place in object storage that it names, at any depth,
//! must be open to its caller before anything is looked up there.

use serde::Serialize;

use crate::app::App;
use crate::error::{Error, Result};
use crate::http::Caller;
use crate::http::places::{Place, in_control_plane};
use crate::objects::{Uri, unreadable, unwritable};

/// Checks a control-plane request, whose shape is right by now.
///
/// # Errors
/// `Validation` with Bedrock's sentence about permissions, the same for what is another account's, what is not there and
/// what nobody assigned; `Unavailable` when that cannot be told.
pub(super) async fn within_walls(app: &App, caller: &Caller, request: &(impl Serialize + Sync)) -> Result<()> {
    let objects = app.objects_for_request(&caller.account);
    let request = serde_json::to_value(request)?;
    for Place { uri, written } in in_control_plane(&request) {
        // What is no URI is refused by whoever would use it, and used by nobody.
        let Ok(uri) = Uri::parse(uri.trim()) else { continue };
        if !objects.may_use(&uri).await? {
            return Err(Error::validation(if written { unwritable(&uri) } else { unreadable(&uri) }));
        }
    }
    Ok(())
}
