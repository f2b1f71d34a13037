//! AWS Signature Version 4, the verifying side.
//!
//! Source: AWS, "Create a signed AWS API request" (reference_sigv-create-signed-request), with what
//! Bedrock's clients do: the path arrives percent-encoded and the canonical request encodes it once
//! more; boto3 sends no `x-amz-content-sha256`, so the body is hashed here; over HTTP/2 the JavaScript
//! SDK signs `:authority` in place of `host`. The key derivation and the MAC are `aws-sigv4`'s.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use axum::http::header;
use axum::http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::auth::Denied;
use crate::clock::Millis;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "bedrock";
/// How far the client's clock may be off.
const SKEW_MS: Millis = 5 * 60 * 1000;
/// What stays as it is in a canonical query; a canonical path keeps its slashes too.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// What the `Authorization` header claims.
#[derive(Debug)]
pub(super) struct Signature {
    /// The access key's id.
    pub(super) key_id: String,
    /// `<yyyymmdd>/<region>/<service>/aws4_request`, and its two middle parts.
    scope: String,
    region: String,
    service: &'static str,
    signed_headers: Vec<String>,
    signature: String,
    /// `yyyymmddThhmmssZ`, and the same in milliseconds.
    date: String,
    at: Millis,
}

impl Signature {
    /// Reads the header and checks all that can be checked without the key.
    pub(super) fn from_head(header: &str, parts: &Parts, now: Millis, region: &str) -> Result<Self, Denied> {
        Self::for_service(SERVICE, header, parts, now, region)
    }

    /// The same for a service of any name: AWS's published examples sign for another than ours.
    fn for_service(
        service: &'static str,
        header: &str,
        parts: &Parts,
        now: Millis,
        region: &str,
    ) -> Result<Self, Denied> {
        let wrong = |what: &str| Denied::Signature(what.to_string());
        let fields = header.strip_prefix(ALGORITHM).ok_or_else(|| {
            wrong("Authorization must be 'Bearer <key>' or an AWS4-HMAC-SHA256 signature for the service 'bedrock'")
        })?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in fields.split(',') {
            match field.trim().split_once('=') {
                Some(("Credential", value)) => credential = Some(value),
                Some(("SignedHeaders", value)) => signed_headers = Some(value),
                Some(("Signature", value)) => signature = Some(value),
                _ => {}
            }
        }
        let credential = credential.ok_or_else(|| wrong("Authorization header requires 'Credential' parameter."))?;
        let signed_headers =
            signed_headers.ok_or_else(|| wrong("Authorization header requires 'SignedHeaders' parameter."))?;
        let signature = signature.ok_or_else(|| wrong("Authorization header requires 'Signature' parameter."))?;

        let (key_id, scope) = credential.split_once('/').ok_or_else(|| wrong("Credential must hold a scope"))?;
        let date = parts.headers.get("x-amz-date").and_then(|value| value.to_str().ok());
        let date = date.ok_or_else(|| wrong("Authorization header requires existence of the 'X-Amz-Date' header."))?;
        let at = parse_date(date).ok_or_else(|| wrong("X-Amz-Date must be in the form yyyymmddThhmmssZ"))?;
        let expected = format!("{}/{region}/{service}/aws4_request", &date[..8]);
        if scope != expected {
            return Err(Denied::Signature(format!(
                "Credential should be scoped to '{expected}' (this service is in region '{region}'), not to '{scope}'"
            )));
        }
        if (now - at).abs() > SKEW_MS {
            let past = if at < now { "expired" } else { "not yet current" };
            return Err(Denied::Signature(format!(
                "Signature {past}: {date} is more than 5 minutes away from the time of this service"
            )));
        }

        let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_ascii_lowercase).collect();
        let signs = |name: &str| signed_headers.iter().any(|signed| signed == name);
        if !signs("host") && !signs(":authority") {
            return Err(wrong("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."));
        }
        for name in parts.headers.keys().filter(|name| name.as_str().starts_with("x-amz-")) {
            if !signs(name.as_str()) {
                return Err(Denied::Signature(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.")));
            }
        }
        Ok(Self {
            key_id: key_id.to_string(),
            scope: expected,
            region: region.to_string(),
            service,
            signed_headers,
            signature: signature.to_string(),
            date: date.to_string(),
            at,
        })
    }

    /// Recomputes the signature with the key's secret.
    pub(super) fn verify(&self, secret: &str, parts: &Parts, body: &[u8]) -> Result<(), Denied> {
        let digest = hex::encode(Sha256::digest(body));
        if let Some(claimed) = parts.headers.get("x-amz-content-sha256")
            && claimed.as_bytes() != digest.as_bytes()
        {
            return Err(Denied::Signature("x-amz-content-sha256 is not the SHA-256 of the request body".into()));
        }
        let canonical = self.canonical_request(parts, &digest)?;
        let hashed = hex::encode(Sha256::digest(canonical.as_bytes()));
        let to_sign = format!("{ALGORITHM}\n{}\n{}\n{hashed}", self.date, self.scope);
        let time = UNIX_EPOCH + Duration::from_millis(self.at.unsigned_abs());
        let key = generate_signing_key(secret, time, &self.region, self.service);
        let expected = calculate_signature(key, to_sign.as_bytes());
        if bool::from(expected.as_bytes().ct_eq(self.signature.as_bytes())) {
            return Ok(());
        }
        Err(Denied::Signature(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method."
                .into(),
        ))
    }

    fn canonical_request(&self, parts: &Parts, digest: &str) -> Result<String, Denied> {
        let mut headers = String::new();
        for name in &self.signed_headers {
            let value = header_value(parts, name)
                .ok_or_else(|| Denied::Signature(format!("The signed header '{name}' is not in the request.")))?;
            headers.push_str(&format!("{name}:{value}\n"));
        }
        Ok(format!(
            "{}\n{}\n{}\n{headers}\n{}\n{digest}",
            parts.method,
            utf8_percent_encode(parts.uri.path(), PATH),
            canonical_query(parts.uri.query().unwrap_or_default()),
            self.signed_headers.join(";"),
        ))
    }
}

/// What the fuzzer asks: whether a head is taken for signed by a key whose secret it cannot know, at the very
/// time that it names.
#[cfg(fuzzing)]
pub fn passes(authorization: &str, parts: &Parts) -> bool {
    let date = parts.headers.get("x-amz-date").and_then(|value| value.to_str().ok());
    let now = date.and_then(parse_date).unwrap_or_default();
    let claimed = Signature::from_head(authorization, parts, now, "us-east-1");
    claimed.is_ok_and(|claimed| claimed.verify("a secret that nobody drew", parts, b"").is_ok())
}

/// `20260131T235959Z` in milliseconds.
fn parse_date(text: &str) -> Option<Millis> {
    let well_formed = text.len() == 16
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 => b == b'T',
            15 => b == b'Z',
            _ => b.is_ascii_digit(),
        });
    if !well_formed {
        return None;
    }
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_millisecond())
}

/// The value as signed: trimmed, inner runs of spaces as one, several values joined with commas.
fn header_value(parts: &Parts, name: &str) -> Option<String> {
    if name == "host" || name == ":authority" {
        // HTTP/2 carries the authority in the URI, HTTP/1.1 in a header; signers use either name.
        let host = parts.headers.get(header::HOST).and_then(|value| value.to_str().ok());
        return host.or(parts.uri.authority().map(|authority| authority.as_str())).map(str::to_string);
    }
    let mut values = Vec::new();
    for value in parts.headers.get_all(name) {
        let text = String::from_utf8_lossy(value.as_bytes());
        values.push(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
    }
    (!values.is_empty()).then(|| values.join(","))
}

/// Names and values decoded, encoded strictly, and sorted: clients send them in any order.
fn canonical_query(query: &str) -> String {
    let encode = |text: &str| -> String {
        let bytes: Cow<'_, [u8]> = percent_decode_str(text).into();
        percent_encoding::percent_encode(&bytes, QUERY).to_string()
    };
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests;
