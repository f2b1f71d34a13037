//! `tunesmith openapi`: the document, as committed in `openapi/openapi.json`.

use crate::http::openapi::text;
use crate::routes;

pub(super) fn run() {
    print!("{}", text(&routes::document()));
}
