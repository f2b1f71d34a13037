//! Heads of requests: the authorization, the date, the signed headers, path and query. Nothing but a right
//! signature may pass, and nothing may panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunesmith::http::sigv4::passes;

fuzz_target!(|head: (String, String, String, String)| {
    let (authorization, date, target, token) = head;
    let request = http::Request::builder().method("POST").uri(target).header("host", "localhost");
    let request = request.header("x-amz-date", date).header("x-amz-security-token", token).body(());
    // What is no HTTP never reaches the signature.
    let Ok(request) = request else { return };
    assert!(!passes(&authorization, &request.into_parts().0), "nobody signed this");
});
