//! Vectors computed with botocore 1.43.11 (`SigV4Auth`, the clock held still), and what a thief might try.

mod published;

use axum::http::Request;

use super::*;

const NOW: Millis = 1_769_903_998_000; // 2026-01-31T23:59:58Z
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const JOB: &str = "/model-customization-jobs/arn%3Aaws%3Abedrock%3Aus-east-1%3A000000000000%3Amodel-customization-job%2F\
                   meta.llama3-v1%3A0%2Fabcdefghijkl";

struct Vector {
    method: &'static str,
    target: &'static str,
    body: &'static str,
    headers: &'static [(&'static str, &'static str)],
    signed: &'static str,
    signature: &'static str,
}

const VECTORS: &[Vector] = &[
    Vector {
        method: "GET",
        target: "/model-customization-jobs",
        body: "",
        headers: &[],
        signed: "host;x-amz-date",
        signature: "01ed907a41137e72a591f24f9915a2a8eef198ca6efa2f8ee30929178f238f68",
    },
    Vector {
        method: "GET",
        target: "/model-customization-jobs?maxResults=5&creationTimeAfter=2024-01-02T03%3A04%3A05.678901Z&\
                 nameContains=a%2Bb",
        body: "",
        headers: &[],
        signed: "host;x-amz-date",
        signature: "9d09a903171e58b5cfd1360070820288dfda048bc76a04b67b8e88b01c764f1d",
    },
    Vector {
        method: "GET",
        target: JOB,
        body: "",
        headers: &[],
        signed: "host;x-amz-date",
        signature: "db7b0551ac42fdf61d1f889a4d5b54191332d4b8b59e69d589a83adfc028119b",
    },
    Vector {
        method: "POST",
        target: "/model-customization-jobs",
        body: "{\"jobName\":\"a\",\"note\":\"ü\"}",
        headers: &[("Content-Type", "application/json")],
        signed: "content-type;host;x-amz-date",
        signature: "6528088c8275e1a26bbdec8c6213713cbdecc3d765fe678ed3673055cd5bbd69",
    },
    Vector {
        method: "POST",
        target: "/model/tunesmith.starter-v1%3A0/invoke",
        body: "{\"prompt\":\"hi\"}",
        headers: &[],
        signed: "host;x-amz-date",
        signature: "a3490347225acd8be6c7b6655e32638a47d7f9ae8359ec44b3ddb7dea1212943",
    },
];

impl Vector {
    fn authorization(&self) -> String {
        format!(
            "{ALGORITHM} Credential=AKIDEXAMPLE/20260131/us-east-1/bedrock/aws4_request, SignedHeaders={}, Signature={}",
            self.signed, self.signature
        )
    }

    fn parts(&self) -> Parts {
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.target)
            .header("Host", "127.0.0.1:8080")
            .header("X-Amz-Date", "20260131T235958Z");
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn check(&self, parts: &Parts, body: &str) -> Result<(), Denied> {
        Signature::from_head(&self.authorization(), parts, NOW, "us-east-1")?.verify(SECRET, parts, body.as_bytes())
    }
}

#[test]
fn what_botocore_signs_is_accepted() {
    for vector in VECTORS {
        vector.check(&vector.parts(), vector.body).unwrap_or_else(|denied| panic!("{}: {denied:?}", vector.target));
    }
}

#[test]
fn another_body_path_method_query_or_header_is_refused() {
    let vector = &VECTORS[3];
    assert!(vector.check(&vector.parts(), "{}").is_err());
    for change in [
        |parts: &mut Parts| parts.uri = "/custom-models".parse().unwrap(),
        |parts: &mut Parts| parts.uri = "/model-customization-jobs?a=b".parse().unwrap(),
        |parts: &mut Parts| parts.method = axum::http::Method::PUT,
        |parts: &mut Parts| drop(parts.headers.insert("content-type", "text/plain".parse().unwrap())),
        |parts: &mut Parts| drop(parts.headers.insert("host", "elsewhere".parse().unwrap())),
        |parts: &mut Parts| drop(parts.headers.remove("content-type")),
        |parts: &mut Parts| drop(parts.headers.insert("x-amz-content-sha256", "UNSIGNED-PAYLOAD".parse().unwrap())),
        |parts: &mut Parts| drop(parts.headers.insert("x-amz-security-token", "t".parse().unwrap())),
    ] {
        let mut parts = vector.parts();
        change(&mut parts);
        assert!(vector.check(&parts, vector.body).is_err(), "{parts:?}");
    }
}

#[test]
fn a_slash_that_is_data_is_not_a_slash_that_separates() {
    let vector = &VECTORS[2];
    let mut parts = vector.parts();
    parts.uri = JOB.replace("%2F", "/").parse().unwrap();
    assert!(vector.check(&parts, vector.body).is_err());
}

#[test]
fn a_clock_may_be_five_minutes_off_and_no_more() {
    let (vector, header) = (&VECTORS[0], VECTORS[0].authorization());
    for (shift, fits) in [(-SKEW_MS, true), (SKEW_MS, true), (-SKEW_MS - 1, false), (SKEW_MS + 1, false)] {
        let signature = Signature::from_head(&header, &vector.parts(), NOW + shift, "us-east-1");
        assert_eq!(signature.is_ok(), fits, "{shift} ms");
    }
}

#[test]
fn another_region_service_or_date_in_the_scope_is_refused() {
    let vector = &VECTORS[0];
    for (from, to) in [("us-east-1", "eu-west-1"), ("bedrock", "s3"), ("20260131", "20260130"), ("aws4_", "aws5_")] {
        let header = vector.authorization().replace(from, to);
        assert!(Signature::from_head(&header, &vector.parts(), NOW, "us-east-1").is_err(), "{to}");
    }
}

#[test]
fn over_http_2_the_authority_stands_for_the_host() {
    let vector = &VECTORS[0];
    let mut parts = vector.parts();
    parts.headers.remove("host");
    parts.uri = "http://127.0.0.1:8080/model-customization-jobs".parse().unwrap();
    vector.check(&parts, "").unwrap();
}

#[test]
fn a_query_is_sorted_by_encoded_name_and_then_value() {
    assert_eq!(canonical_query("b=2&a=%c3%bc&a=1&c"), "a=%C3%BC&a=1&b=2&c=");
    assert_eq!(canonical_query("b=2&a=2&a=1"), "a=1&a=2&b=2");
    assert_eq!(canonical_query(""), "");
}

#[test]
fn malformed_headers_and_dates_are_refused_and_never_panic() {
    let parts = VECTORS[0].parts();
    for header in ["", "Basic x", ALGORITHM, "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature="] {
        assert!(Signature::from_head(header, &parts, NOW, "us-east-1").is_err(), "{header}");
    }
    for date in ["", "20260131", "2026-01-31T23:59", "20261331T235958Z", "2026013üT35958Z"] {
        assert_eq!(parse_date(date), None, "{date}");
    }
}

#[test]
fn the_host_must_be_signed_and_a_signed_header_must_be_there() {
    let vector = &VECTORS[0];
    for (signed, said) in [("x-amz-date", "'Host' or ':authority'"), ("host;x-amz-date;x-absent", "'x-absent' is not")]
    {
        let header = vector.authorization().replace(vector.signed, signed);
        let parts = vector.parts();
        let outcome = Signature::from_head(&header, &parts, NOW, "us-east-1");
        let refusal = outcome.and_then(|signature| signature.verify(SECRET, &parts, b"")).unwrap_err();
        assert!(matches!(&refusal, Denied::Signature(text) if text.contains(said)), "{refusal:?}");
    }
}

#[test]
fn a_body_digest_in_the_head_must_be_that_of_the_body() {
    let vector = &VECTORS[0];
    let header = vector.authorization().replace("x-amz-date,", "x-amz-content-sha256;x-amz-date,");
    for claimed in ["UNSIGNED-PAYLOAD", "", &"0".repeat(64)] {
        let mut parts = vector.parts();
        parts.headers.insert("x-amz-content-sha256", claimed.parse().unwrap());
        let signature = Signature::from_head(&header, &parts, NOW, "us-east-1").unwrap();
        let refusal = signature.verify(SECRET, &parts, b"").unwrap_err();
        assert!(matches!(&refusal, Denied::Signature(text) if text.contains("is not the SHA-256")), "{refusal:?}");
    }
}
