//! AWS's published signing examples (`aws-sig-v4-test-suite`): service `service`, 30 August 2015. Left out are
//! those that normalise paths, which a service that encodes the path twice does not do, and header lines that
//! HTTP no longer allows. Each signature was computed again with botocore's `SigV4Auth`.

use axum::http::Request;

use super::super::*;

const NOW: Millis = 1_440_938_160_000; // 2015-08-30T12:36:00Z
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

struct Vector {
    name: &'static str,
    method: &'static str,
    target: &'static str,
    body: &'static str,
    headers: &'static [(&'static str, &'static str)],
    signed: &'static str,
    signature: &'static str,
}

const VECTORS: &[Vector] = &[
    Vector {
        name: "get-header-key-duplicate",
        method: "GET",
        target: "/",
        body: "",
        headers: &[
            ("Host", "example.amazonaws.com"),
            ("My-Header1", "value2"),
            ("My-Header1", "value2"),
            ("My-Header1", "value1"),
            ("x-amz-date", "20150830T123600Z"),
        ],
        signed: "host;my-header1;x-amz-date",
        signature: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    },
    Vector {
        name: "get-header-value-order",
        method: "GET",
        target: "/",
        body: "",
        headers: &[
            ("Host", "example.amazonaws.com"),
            ("My-Header1", "value4"),
            ("My-Header1", "value1"),
            ("My-Header1", "value3"),
            ("My-Header1", "value2"),
            ("x-amz-date", "20150830T123600Z"),
        ],
        signed: "host;my-header1;x-amz-date",
        signature: "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
    },
    Vector {
        name: "get-header-value-trim",
        method: "GET",
        target: "/",
        body: "",
        headers: &[
            ("Host", "example.amazonaws.com"),
            ("My-Header1", " value1"),
            ("My-Header2", " \"a   b   c\""),
            ("x-amz-date", "20150830T123600Z"),
        ],
        signed: "host;my-header1;my-header2;x-amz-date",
        signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    },
    Vector {
        name: "get-unreserved",
        method: "GET",
        target: "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    },
    Vector {
        name: "get-utf8",
        method: "GET",
        target: "/ሴ",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    },
    Vector {
        name: "get-vanilla",
        method: "GET",
        target: "/",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    },
    Vector {
        name: "get-vanilla-empty-query-key",
        method: "GET",
        target: "/?Param1=value1",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
    },
    Vector {
        name: "get-vanilla-query",
        method: "GET",
        target: "/",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    },
    Vector {
        name: "get-vanilla-query-order-encoded",
        method: "GET",
        target: "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    },
    Vector {
        name: "get-vanilla-query-order-key-case",
        method: "GET",
        target: "/?Param2=value2&Param1=value1",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    },
    Vector {
        name: "get-vanilla-query-unreserved",
        method: "GET",
        target: "/?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
    },
    Vector {
        name: "get-vanilla-utf8-query",
        method: "GET",
        target: "/?ሴ=bar",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
    },
    Vector {
        name: "get-vanilla-with-session-token",
        method: "GET",
        target: "/",
        body: "",
        headers: &[
            ("Host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
            ("x-amz-security-token", "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"),
        ],
        signed: "host;x-amz-date;x-amz-security-token",
        signature: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
    },
    Vector {
        name: "post-header-key-case",
        method: "POST",
        target: "/",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    },
    Vector {
        name: "post-header-key-sort",
        method: "POST",
        target: "/",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("My-Header1", "value1"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;my-header1;x-amz-date",
        signature: "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
    },
    Vector {
        name: "post-header-value-case",
        method: "POST",
        target: "/",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("My-Header1", "VALUE1"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;my-header1;x-amz-date",
        signature: "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
    },
    Vector {
        name: "post-sts-header-before",
        method: "POST",
        target: "/",
        body: "",
        headers: &[
            ("Host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
            (
                "x-amz-security-token",
                "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==",
            ),
        ],
        signed: "host;x-amz-date;x-amz-security-token",
        signature: "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
    },
    Vector {
        name: "post-vanilla",
        method: "POST",
        target: "/",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    },
    Vector {
        name: "post-vanilla-empty-query-value",
        method: "POST",
        target: "/?Param1=value1",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    },
    Vector {
        name: "post-vanilla-query",
        method: "POST",
        target: "/?Param1=value1",
        body: "",
        headers: &[("Host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
        signed: "host;x-amz-date",
        signature: "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    },
    Vector {
        name: "post-x-www-form-urlencoded",
        method: "POST",
        target: "/",
        body: "Param1=value1",
        headers: &[
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Host", "example.amazonaws.com"),
            ("Content-Length", "13"),
            ("x-amz-content-sha256", "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"),
            ("x-amz-date", "20150830T123600Z"),
        ],
        signed: "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
        signature: "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
    },
    Vector {
        name: "post-x-www-form-urlencoded-parameters",
        method: "POST",
        target: "/",
        body: "Param1=value1",
        headers: &[
            ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("Host", "example.amazonaws.com"),
            ("Content-Length", "13"),
            ("x-amz-content-sha256", "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"),
            ("x-amz-date", "20150830T123600Z"),
        ],
        signed: "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
        signature: "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422",
    },
];

impl Vector {
    fn check(&self, body: &str, alter: impl FnOnce(&mut Parts)) -> Result<(), Denied> {
        let mut request = Request::builder().method(self.method).uri(self.target);
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        alter(&mut parts);
        let header = format!(
            "{ALGORITHM} Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders={}, Signature={}",
            self.signed, self.signature
        );
        Signature::for_service("service", &header, &parts, NOW, "us-east-1")?.verify(SECRET, &parts, body.as_bytes())
    }
}

#[test]
fn what_aws_publishes_is_accepted() {
    assert!(VECTORS.len() >= 15, "{}", VECTORS.len());
    for vector in VECTORS {
        vector.check(vector.body, |_| {}).unwrap_or_else(|denied| panic!("{}: {denied:?}", vector.name));
    }
}

#[test]
fn what_aws_publishes_is_refused_with_another_body_or_another_query() {
    for vector in VECTORS {
        assert!(vector.check("swapped", |_| {}).is_err(), "{}", vector.name);
        let changed = vector.check(vector.body, |parts| parts.uri = "/?another=1".parse().unwrap());
        assert!(changed.is_err(), "{}", vector.name);
    }
}
