//! Signatures, as far as `s3s` does not check them: links of signature version 2, the headers that a
//! signature of version 4 must cover, and the parameters of a link that stand for headers.

use percent_encoding::percent_decode_str;
use s3s::auth::S3Auth;
use s3s::crypto::{Checksum, Sha1};
use s3s::{S3Error, S3Result, s3_error};
use subtle::ConstantTimeEq;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};

use crate::clock::Millis;

/// AWS refuses presigned links that live longer than a week, and so do we.
const LONGEST_LINK: i64 = 7 * 24 * 3600;
/// Parameters of a link that are part of its signature and no header.
const LINK_PARAMETERS: &[&str] = &[
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signedheaders",
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-content-sha256",
];
/// Query parameters that signature version 2 covers, in order.
const COVERED: &[&str] = &[
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "defaultObjectAcl",
    "delete",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "partNumber",
    "policy",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "select",
    "select-type",
    "storageClass",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// Checks what `s3s` does not, and prepares the request for what it does. `bucket` is the one that the host
/// names.
///
/// # Errors
/// `AccessDenied`, `SignatureDoesNotMatch`, `InvalidAccessKeyId`, `AuthorizationQueryParametersError`,
/// `InvalidRequest`.
pub(super) async fn check<B: Send>(
    request: &mut Request<B>,
    bucket: Option<&str>,
    keys: &impl S3Auth,
    now: Millis,
) -> S3Result<()> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let authorization = request.headers().get(hyper::header::AUTHORIZATION).cloned();
    let header = authorization.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
    let version_2 = query.has("Signature") || query.has("AWSAccessKeyId");
    let version_4 = query.has("X-Amz-Signature");
    if usize::from(version_2) + usize::from(version_4) + usize::from(authorization.is_some()) > 1 {
        return Err(s3_error!(
            InvalidArgument,
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter \
             or the Authorization header should be specified"
        ));
    }
    if header.starts_with(b"AWS ") {
        return Err(s3_error!(
            InvalidRequest,
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
        ));
    }
    if version_2 {
        return link_of_version_2(request, &query, bucket, keys, now).await;
    }
    if version_4 {
        if query.get("X-Amz-Expires").and_then(|s| s.parse::<i64>().ok()).is_some_and(|s| s > LONGEST_LINK) {
            return Err(s3_error!(
                AuthorizationQueryParametersError,
                "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than \
                 604800 seconds"
            ));
        }
        covered(request.headers(), query.get("X-Amz-SignedHeaders").unwrap_or_default(), true)?;
        hoisted(request.headers_mut(), &query)?;
    } else if let Ok(header) = std::str::from_utf8(header)
        && let Some((_, rest)) = header.split_once("SignedHeaders=")
    {
        covered(request.headers(), rest.split([',', ' ']).next().unwrap_or_default(), false)?;
    }
    Ok(())
}

/// The host and every `x-amz-*` header are covered by the signature. Without the host, a request could be sent to
/// another bucket; without the others, a link to write could be made one to copy.
fn covered(headers: &HeaderMap, signed: &str, link: bool) -> S3Result<()> {
    let signed: Vec<_> = signed.split(';').map(str::to_ascii_lowercase).collect();
    let is_signed = |name: &str| signed.iter().any(|signed| signed == name);
    let open = headers.keys().map(HeaderName::as_str).find(|name| {
        // The digest of a link's body is not known when the link is made; it is checked all the same. The name of
        // the client changes nothing.
        let harmless = *name == "x-amz-user-agent" || link && *name == "x-amz-content-sha256";
        name.starts_with("x-amz-") && !is_signed(name) && !harmless
    });
    match open.or((!is_signed("host")).then_some("host")) {
        Some(name) => {
            Err(s3_error!(AccessDenied, "There were headers present in the request which were not signed: {name}"))
        }
        None => Ok(()),
    }
}

/// Gives the parameters of a link that stand for headers to those who look for headers.
fn hoisted(headers: &mut HeaderMap, query: &Query) -> S3Result<()> {
    for (name, value) in &query.0 {
        let name = name.to_ascii_lowercase();
        // A checksum in a link is that of the empty body which there was when it was made.
        let of_body = name.starts_with("x-amz-checksum-") && name != "x-amz-checksum-mode"
            || name == "x-amz-sdk-checksum-algorithm";
        if !name.starts_with("x-amz-") || of_body || LINK_PARAMETERS.contains(&name.as_str()) {
            continue;
        }
        let invalid = |_| s3_error!(InvalidArgument, "The query parameter {name} is no header's value");
        let header = HeaderName::try_from(&name)
            .map_err(|_| s3_error!(InvalidArgument, "The query parameter {name} is no header's name"))?;
        if !headers.contains_key(&header) {
            headers.insert(header, HeaderValue::try_from(value).map_err(invalid)?);
        }
    }
    Ok(())
}

/// A link as boto3 makes it where no signature version is set.
async fn link_of_version_2<B: Send>(
    request: &mut Request<B>,
    query: &Query,
    bucket: Option<&str>,
    keys: &impl S3Auth,
    now: Millis,
) -> S3Result<()> {
    let missing = |name: &str| s3_error!(AccessDenied, "Query-string authentication requires the {name} parameter");
    let key = query.only("AWSAccessKeyId").ok_or_else(|| missing("AWSAccessKeyId"))?;
    let signature = query.only("Signature").ok_or_else(|| missing("Signature"))?;
    let expires = query.only("Expires").ok_or_else(|| missing("Expires"))?;
    let until = expires
        .parse::<i64>()
        .map_err(|_| s3_error!(AccessDenied, "Invalid date (should be seconds since epoch): {expires}"))?;
    if ![Method::GET, Method::HEAD, Method::PUT].contains(request.method()) {
        return Err(s3_error!(InvalidRequest, "A link of signature version 2 may only GET, HEAD or PUT"));
    }
    if until < now / 1000 {
        return Err(s3_error!(AccessDenied, "Request has expired"));
    }
    if until > now / 1000 + LONGEST_LINK {
        return Err(s3_error!(AuthorizationQueryParametersError, "Expires must lie less than a week ahead"));
    }
    if let Some(token) = query.only("x-amz-security-token") {
        let token =
            HeaderValue::try_from(token).map_err(|_| s3_error!(InvalidToken, "The provided token is malformed"))?;
        request.headers_mut().insert("x-amz-security-token", token);
    }
    let secret = keys.get_secret_key(key).await?;
    let path = request.uri().path().to_string();
    let is_signed = |path: &str| {
        let signed = mac(secret.expose().as_bytes(), signed_text(request, query, bucket, path, expires).as_bytes());
        bool::from(STANDARD.encode(signed).as_bytes().ct_eq(signature.as_bytes()))
    };
    if is_signed(&path) {
        return Ok(());
    }
    // A bucket in the path may be signed with a slash at its end, as boto3 does, and sent without.
    let folder = format!("{path}/");
    if bucket.is_none() && path.rfind('/') == Some(0) && path.len() > 1 && is_signed(&folder) {
        let whole = format!("{folder}?{}", request.uri().query().unwrap_or_default());
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(whole.parse().map_err(|_| mismatch())?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| mismatch())?;
        return Ok(());
    }
    Err(mismatch())
}

fn mismatch() -> S3Error {
    s3_error!(
        SignatureDoesNotMatch,
        "The request signature we calculated does not match the signature you provided. Check your key and signing method."
    )
}

/// What a link of version 2 signs: verb, digest, type, end of life, `x-amz-*` headers, resource.
fn signed_text<B>(request: &Request<B>, query: &Query, bucket: Option<&str>, path: &str, expires: &str) -> String {
    let headers = request.headers();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut text = format!("{}\n{}\n{}\n{expires}\n", request.method(), header("content-md5"), header("content-type"));
    let mut amz: Vec<_> = headers.keys().map(HeaderName::as_str).filter(|name| name.starts_with("x-amz-")).collect();
    amz.sort_unstable();
    for name in amz {
        let values: Vec<_> = headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::trim).collect();
        text.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    if let Some(bucket) = bucket {
        text.push('/');
        text.push_str(bucket);
    }
    text.push_str(path);
    let covered = COVERED.iter().filter_map(|name| Some((name, query.only(name)?)));
    for (at, (name, value)) in covered.enumerate() {
        text.push(if at == 0 { '?' } else { '&' });
        text.push_str(name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    text
}

/// HMAC-SHA1 (RFC 2104), which version 2 signs with.
fn mac(key: &[u8], message: &[u8]) -> [u8; 20] {
    const BLOCK: usize = 64;
    let digest = |parts: &[&[u8]]| {
        let mut sha = Sha1::new();
        parts.iter().for_each(|part| sha.update(part));
        sha.finalize()
    };
    let hashed;
    let key = if key.len() > BLOCK {
        hashed = digest(&[key]);
        &hashed[..]
    } else {
        key
    };
    let mut inner = [0x36; BLOCK];
    let mut outer = [0x5c; BLOCK];
    for (at, byte) in key.iter().enumerate() {
        inner[at] ^= byte;
        outer[at] ^= byte;
    }
    digest(&[&outer, &digest(&[&inner, message])])
}

/// A query's parameters, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        });
        Self(pairs.collect())
    }

    /// Names of links are looked for in any case: `s3s` takes them as they are written, and must see no others.
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found.eq_ignore_ascii_case(name))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that stands once.
    fn only(&self, name: &str) -> Option<&str> {
        let mut found = self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        found.next().filter(|_| found.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use s3s::auth::SimpleAuth;

    use super::*;

    const KEY: &str = "AKIDEXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    async fn code(request: &mut Request<()>, bucket: Option<&str>, now: i64) -> String {
        let keys = SimpleAuth::from_single(KEY, SECRET);
        match check(request, bucket, &keys, now * 1000).await {
            Ok(()) => "ok".to_string(),
            Err(error) => error.code().as_str().to_string(),
        }
    }

    fn link(method: &str, path: &str, expires: i64, bucket: &str) -> String {
        let signed = mac(SECRET.as_bytes(), format!("{method}\n\n\n{expires}\n{bucket}{path}").as_bytes());
        let signature: String =
            percent_encoding::utf8_percent_encode(&STANDARD.encode(signed), percent_encoding::NON_ALPHANUMERIC)
                .collect();
        let parameter = if path.contains('?') { '&' } else { '?' };
        format!("http://h{path}{parameter}AWSAccessKeyId={KEY}&Signature={signature}&Expires={expires}")
    }

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn the_mac_is_that_of_rfc_2202() {
        assert_eq!(
            hex::encode(mac(b"Jefe", b"what do ya want for nothing?")),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        let long = mac(&[0xaa; 80], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex::encode(long), "aa4ae5e15272d00e95705637ce8a3b55ed402112");
    }

    #[tokio::test]
    async fn a_link_of_version_2_opens_what_it_names_until_it_expires() {
        let now = 1_700_000_000;
        for method in ["GET", "HEAD", "PUT"] {
            let uri = link(method, "/tuning/a%20b", now + 60, "");
            assert_eq!(code(&mut request(method, &uri, &[]), None, now).await, "ok", "{method}");
        }
        let hosted = link("GET", "/a", now + 60, "/tuning");
        assert_eq!(code(&mut request("GET", &hosted, &[]), Some("tuning"), now).await, "ok");
        assert_eq!(code(&mut request("GET", &hosted, &[]), Some("other"), now).await, "SignatureDoesNotMatch");
        let typed = link("GET", "/tuning/a?response-content-type=text/csv", now + 60, "");
        assert_eq!(code(&mut request("GET", &typed, &[]), None, now).await, "ok");

        // A bucket signed with a slash and sent without, as boto3 does; `s3s` is to see what was signed.
        let mut bucket = request("GET", &link("GET", "/tuning/", now + 60, "").replace("/tuning/?", "/tuning?"), &[]);
        assert_eq!(code(&mut bucket, None, now).await, "ok");
        assert_eq!(bucket.uri().path(), "/tuning/");

        let good = link("GET", "/tuning/a", now + 60, "");
        for (method, uri, headers, now, refused) in [
            ("GET", good.clone(), &[][..], now + 61, "AccessDenied"),
            ("PUT", good.clone(), &[], now, "SignatureDoesNotMatch"),
            ("DELETE", link("DELETE", "/tuning/a", now + 60, ""), &[], now, "InvalidRequest"),
            ("GET", good.replace("/tuning/a", "/tuning/b"), &[], now, "SignatureDoesNotMatch"),
            ("GET", format!("{good}&acl"), &[], now, "SignatureDoesNotMatch"),
            ("GET", good.replace(KEY, "AKIDOTHER"), &[], now, "NotSignedUp"),
            ("GET", good.replace("AWSAccessKeyId", "AccessKeyId"), &[], now, "AccessDenied"),
            ("GET", format!("{good}&Expires={}", now + 600), &[], now, "AccessDenied"),
            ("GET", good.clone(), &[("x-amz-copy-source", "/a/b")], now, "SignatureDoesNotMatch"),
            ("GET", good.clone(), &[("authorization", "AWS4-HMAC-SHA256 x")], now, "InvalidArgument"),
            ("GET", link("GET", "/a", now + LONGEST_LINK + 1, ""), &[], now, "AuthorizationQueryParametersError"),
            ("GET", "http://h/a?Signature=x".to_string(), &[], now, "AccessDenied"),
            ("GET", "http://h/a".to_string(), &[("authorization", "AWS a:b")], now, "InvalidRequest"),
        ] {
            assert_eq!(code(&mut request(method, &uri, headers), None, now).await, refused, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn a_signature_of_version_4_covers_the_host_and_every_header_that_s3_obeys() {
        let header = |signed: &str| format!("AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders={signed}, Signature=00");
        let link =
            |signed: &str| format!("http://h/a?X-Amz-Signature=00&X-Amz-SignedHeaders={signed}&x-amz-acl=private");
        for (signed, answer) in [("host;x-amz-date", "ok"), ("x-amz-date", "AccessDenied"), ("host", "AccessDenied")] {
            let authorization = header(signed);
            let headers = [("authorization", authorization.as_str()), ("x-amz-date", "d")];
            assert_eq!(code(&mut request("PUT", "http://h/a", &headers), None, 0).await, answer, "{signed}");
        }
        for (signed, answer) in [("host%3Bx-amz-copy-source", "ok"), ("host", "AccessDenied"), ("", "AccessDenied")] {
            let headers = [("x-amz-copy-source", "/a/b"), ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")];
            let mut request = request("PUT", &link(signed), &headers);
            assert_eq!(code(&mut request, None, 0).await, answer, "{signed}");
            if answer == "ok" {
                assert_eq!(request.headers()["x-amz-acl"], "private", "a link's parameter stands for a header");
                assert!(!request.headers().contains_key("x-amz-signature"));
            }
        }
    }
}
