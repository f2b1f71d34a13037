//! Cross-origin requests: the rules of a bucket, the preflight of a browser, and the headers of an
//! answer to another origin.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use s3s::dto::{CORSConfiguration, CORSRule, GetBucketCorsOutput};
use s3s::{Body, HttpResponse, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::index::{Index, custom};
use super::settings::Kind;

/// S3's most rules of one bucket.
const MAX_RULES: usize = 100;
const METHODS: &[&str] = &["GET", "PUT", "POST", "DELETE", "HEAD"];

/// One rule, as it was put.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Rule {
    id: Option<String>,
    origins: Vec<String>,
    methods: Vec<String>,
    headers: Vec<String>,
    expose: Vec<String>,
    max_age: Option<i32>,
}

/// What a page of another origin wants to send.
struct Preflight<'a> {
    origin: &'a str,
    method: &'a str,
    headers: Vec<String>,
}

impl Index {
    pub(super) async fn put_cors(&self, bucket: &str, configuration: CORSConfiguration) -> S3Result<()> {
        let rules: Vec<Rule> = configuration.cors_rules.into_iter().map(Rule::from).collect();
        if rules.is_empty() || rules.len() > MAX_RULES {
            return Err(s3_error!(
                MalformedXML,
                "The XML you provided was not well-formed or did not validate against our published schema"
            ));
        }
        rules.iter().try_for_each(Rule::check)?;
        self.put_setting(bucket, Kind::Cors, &rules).await
    }

    pub(super) async fn get_cors(&self, bucket: &str) -> S3Result<GetBucketCorsOutput> {
        let rules: Option<Vec<Rule>> = self.setting(bucket, Kind::Cors).await?;
        let rules = rules.ok_or_else(|| s3_error!(NoSuchCORSConfiguration, "The CORS configuration does not exist"))?;
        Ok(GetBucketCorsOutput { cors_rules: Some(rules.into_iter().map(CORSRule::from).collect()) })
    }

    /// The answer to an `OPTIONS` request, which nobody signs.
    ///
    /// # Errors
    /// `BadRequest` for no preflight; `AccessForbidden` when no rule allows what is asked for.
    pub(super) async fn preflight<B>(&self, bucket: Option<String>, request: &Request<B>) -> S3Result<HttpResponse> {
        let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let insufficient = |what| custom("BadRequest", StatusCode::BAD_REQUEST, what);
        let origin = text(header::ORIGIN)
            .ok_or_else(|| insufficient("Insufficient information. Origin request header needed."))?;
        let method = text(header::ACCESS_CONTROL_REQUEST_METHOD)
            .filter(|method| METHODS.contains(method))
            .ok_or_else(|| insufficient("Invalid Access-Control-Request-Method"))?;
        let headers = text(header::ACCESS_CONTROL_REQUEST_HEADERS).unwrap_or_default().split(',');
        let headers = headers.map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect();
        let asked = Preflight { origin, method, headers };
        let rules = match &bucket {
            Some(bucket) => self.rules(bucket).await,
            None => Vec::new(),
        };
        let Some(rule) = rules.iter().find(|rule| rule.allows(&asked)) else {
            return Err(custom(
                "AccessForbidden",
                StatusCode::FORBIDDEN,
                if rules.is_empty() {
                    "CORSResponse: CORS is not enabled for this bucket."
                } else {
                    "CORSResponse: This CORS request is not allowed. This is usually because the evaluation of Origin, \
                     request method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted \
                     by the resource's CORS spec."
                },
            ));
        };
        let mut response = HttpResponse::new(Body::empty());
        rule.answer(&asked, response.headers_mut());
        Ok(response)
    }

    /// Adds what a browser of another origin needs to the answer to its request.
    pub(super) async fn allow_origin(
        &self,
        bucket: &str,
        method: &Method,
        origin: &HeaderValue,
        headers: &mut HeaderMap,
    ) {
        let Ok(origin) = origin.to_str() else { return };
        let asked = Preflight { origin, method: method.as_str(), headers: Vec::new() };
        if let Some(rule) = self.rules(bucket).await.iter().find(|rule| rule.allows(&asked)) {
            rule.answer(&asked, headers);
        }
    }

    /// None where there is no such bucket: a stranger does not learn which there are.
    async fn rules(&self, bucket: &str) -> Vec<Rule> {
        self.setting(bucket, Kind::Cors).await.ok().flatten().unwrap_or_default()
    }
}

impl Rule {
    /// # Errors
    /// `InvalidRequest`, in S3's words.
    fn check(&self) -> S3Result<()> {
        if let Some(method) = self.methods.iter().find(|method| !METHODS.contains(&method.as_str())) {
            return Err(s3_error!(
                InvalidRequest,
                "Found unsupported HTTP method in CORS config. Unsupported method is {method}"
            ));
        }
        if self.methods.is_empty() || self.origins.is_empty() {
            return Err(s3_error!(
                MalformedXML,
                "The XML you provided was not well-formed or did not validate against our published schema"
            ));
        }
        for (what, values) in [("AllowedOrigin", &self.origins), ("AllowedHeader", &self.headers)] {
            if let Some(value) = values.iter().find(|value| value.matches('*').count() > 1) {
                return Err(s3_error!(InvalidRequest, "{what} \"{value}\" can not have more than one wildcard."));
            }
        }
        if let Some(value) =
            self.expose.iter().find(|name| HeaderName::try_from(name.as_str()).is_err() || name.contains('*'))
        {
            return Err(s3_error!(
                InvalidRequest,
                "ExposeHeader \"{value}\" contains wildcard. We currently do not support wildcard for ExposeHeader."
            ));
        }
        Ok(())
    }

    fn allows(&self, asked: &Preflight<'_>) -> bool {
        self.origins.iter().any(|origin| matches(origin, asked.origin))
            && self.methods.iter().any(|method| method == asked.method)
            && asked
                .headers
                .iter()
                .all(|asked| self.headers.iter().any(|name| matches(&name.to_ascii_lowercase(), asked)))
    }

    fn answer(&self, asked: &Preflight<'_>, headers: &mut HeaderMap) {
        let any = self.origins.iter().any(|origin| origin == "*");
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        set(header::ACCESS_CONTROL_ALLOW_ORIGIN, if any { "*" } else { asked.origin });
        set(header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods.join(", "));
        if !asked.headers.is_empty() {
            set(header::ACCESS_CONTROL_ALLOW_HEADERS, &asked.headers.join(", "));
        }
        if !self.expose.is_empty() {
            set(header::ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose.join(", "));
        }
        if let Some(seconds) = self.max_age {
            set(header::ACCESS_CONTROL_MAX_AGE, &seconds.to_string());
        }
        if !any {
            set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
        }
        set(header::VARY, "Origin, Access-Control-Request-Headers, Access-Control-Request-Method");
    }
}

/// Whether `text` is `pattern`, in which one `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after)
        }
    }
}

impl From<CORSRule> for Rule {
    fn from(rule: CORSRule) -> Self {
        Self {
            id: rule.id,
            origins: rule.allowed_origins,
            methods: rule.allowed_methods,
            headers: rule.allowed_headers.unwrap_or_default(),
            expose: rule.expose_headers.unwrap_or_default(),
            max_age: rule.max_age_seconds,
        }
    }
}

impl From<Rule> for CORSRule {
    fn from(rule: Rule) -> Self {
        let some = |values: Vec<String>| (!values.is_empty()).then_some(values);
        Self {
            id: rule.id,
            allowed_origins: rule.origins,
            allowed_methods: rule.methods,
            allowed_headers: some(rule.headers),
            expose_headers: some(rule.expose),
            max_age_seconds: rule.max_age,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wildcard_stands_for_anything() {
        for (pattern, text, found) in [
            ("*", "https://a.example", true),
            ("https://*.example", "https://a.example", true),
            ("https://*.example", "https://.exampl", false),
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "https://a.example.org", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), found, "{pattern} {text}");
        }
    }
}
