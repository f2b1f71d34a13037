//! Addressing styles: whether a request names its bucket in the path or in the `Host`. A host name
//! that may be either is refused, because the first part of a key must never be taken for a bucket.

use std::net::IpAddr;

use s3s::host::{S3Host, VirtualHost};
use s3s::{S3Result, s3_error};

use crate::error::{Error, Result};

/// Domain that every client finds on its own machine.
const LOCALHOST: &str = "localhost";

/// Domains whose subdomains are buckets.
#[derive(Debug, Clone)]
pub(super) struct Domains {
    names: Vec<String>,
}

impl Domains {
    /// `localhost` and what is configured.
    ///
    /// # Errors
    /// `Validation` for what is no domain name, and for domains of which one contains the other.
    pub(super) fn new(configured: &[String]) -> Result<Self> {
        let mut names = vec![LOCALHOST.to_string()];
        for name in configured {
            let name = name.trim().trim_end_matches('.').to_ascii_lowercase();
            if !is_domain(&name) {
                return Err(Error::validation(format!(
                    "TUNESMITH_S3_DOMAIN must be domain names without a port, such as s3.example.com, not {name:?}"
                )));
            }
            names.push(name);
        }
        names.sort();
        names.dedup();
        for name in &names {
            if let Some(inner) = names.iter().find(|other| subdomain(other, name).is_some()) {
                return Err(Error::validation(format!(
                    "TUNESMITH_S3_DOMAIN: {inner} lies below {name}, so a bucket could be meant; keep one of them"
                )));
            }
        }
        Ok(Self { names })
    }

    /// The bucket that `host` names; `None` where the path names it.
    ///
    /// # Errors
    /// `InvalidHostHeader` when it could be either.
    pub(super) fn bucket(&self, host: &str) -> S3Result<Option<String>> {
        let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        // An address has no subdomains, nor has a name of one part.
        if is_address(&name) || !name.contains('.') || self.names.contains(&name) {
            return Ok(None);
        }
        if let Some(bucket) = self.names.iter().find_map(|domain| subdomain(&name, domain)) {
            return Ok(Some(bucket.to_string()));
        }
        Err(s3_error!(
            InvalidHostHeader,
            "The host {name:?} may name a bucket or this server. Set TUNESMITH_S3_DOMAIN to the server's domain, or use \
             its IP address"
        ))
    }

    /// The bucket that a request is about, if any; what cannot be told names none.
    pub(super) fn bucket_of<B>(&self, request: &hyper::Request<B>) -> Option<String> {
        let hosted = match host(request) {
            Some(host) => self.bucket(host).ok()?,
            None => None,
        };
        hosted.or_else(|| {
            let first = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
            let bucket = percent_encoding::percent_decode_str(first).decode_utf8().ok()?.into_owned();
            (!bucket.is_empty()).then_some(bucket)
        })
    }
}

impl S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let at = VirtualHost::new(host);
        Ok(match self.bucket(host)? {
            Some(bucket) => at.with_bucket(bucket),
            None => at,
        })
    }
}

/// The host of a request, with its port.
pub(super) fn host<B>(request: &hyper::Request<B>) -> Option<&str> {
    match request.headers().get(hyper::header::HOST) {
        Some(host) => host.to_str().ok(),
        // HTTP/2 names it in the request line.
        None => request.uri().authority().map(hyper::http::uri::Authority::as_str),
    }
}

/// The part of `name` that precedes `.domain`.
fn subdomain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    name.strip_suffix(domain)?.strip_suffix('.').filter(|rest| !rest.is_empty())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

fn is_address(name: &str) -> bool {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok()
}

fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label) && !is_address(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(configured: &[&str]) -> Result<Domains> {
        Domains::new(&configured.iter().map(|name| (*name).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn a_host_names_a_bucket_or_the_server_or_is_refused() {
        let domains = domains(&["S3.Example.com", "tunesmith"]).unwrap();
        for (host, bucket) in [
            ("tuning.localhost:9000", Some("tuning")),
            ("tuning.localhost", Some("tuning")),
            ("Tuning.LocalHost.:9000", Some("tuning")),
            ("my.dotted.bucket.localhost", Some("my.dotted.bucket")),
            ("tuning.s3.example.com", Some("tuning")),
            ("tuning.tunesmith:9000", Some("tuning")),
            ("localhost:9000", None),
            ("s3.example.com", None),
            ("tunesmith:9000", None),
            ("minio", None),
            ("127.0.0.1:9000", None),
            ("127.0.0.1", None),
            ("[::1]:9000", None),
            ("[::1]", None),
            ("::1", None),
        ] {
            assert_eq!(domains.bucket(host).unwrap().as_deref(), bucket, "{host}");
        }
        for host in [
            "tuning.127.0.0.1:9000",
            "tuning.example.org",
            "example.com",
            "notlocalhost.",
            "xs3.example.com",
            ".localhost",
        ] {
            let refused = domains.bucket(host);
            if host == "notlocalhost." {
                assert_eq!(refused.unwrap(), None, "a name of one part");
                continue;
            }
            assert_eq!(refused.unwrap_err().code().as_str(), "InvalidHostHeader", "{host}");
        }
    }

    #[test]
    fn domains_that_could_be_mistaken_for_each_other_are_refused() {
        assert!(domains(&["example.com", "example.org"]).is_ok());
        for wrong in
            [&["example.com", "s3.example.com"][..], &["x.localhost"], &["a:9000"], &["10.0.0.1"], &["a..b"], &[""]]
        {
            assert!(domains(wrong).unwrap_err().message().contains("TUNESMITH_S3_DOMAIN"), "{wrong:?}");
        }
    }
}
