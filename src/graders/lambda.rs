//! A grader behind the Lambda invocation API: `POST /2015-03-31/functions/<arn>/invocations`, signed with SigV4,
//! with the request and the reply of Bedrock's reward functions ("Setting up reward functions" in its user guide).
//! AWS, LocalStack and the Lambda runtime emulator speak it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use axum::http::Request;
use futures::StreamExt;
use http_body_util::BodyExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use super::built_in::finite;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::train::{Grade, Graded, Grader, Sample, StopFlag};

/// What stays as it is in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Samples of one invocation in each try: what fails is asked again in smaller company, so that one answer that
/// the function cannot take costs no grade but its own.
const TOGETHER: [usize; 3] = [32, 8, 1];
/// Invocations under way at once.
const AT_ONCE: usize = 8;
/// Wait before the second try; twice as long before the third.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a stop is looked for while an invocation is under way.
const LOOK: Duration = Duration::from_millis(50);
/// Replies are read up to this size; Lambda's own limit is 6 MB.
const LARGEST: usize = 32 << 20;

/// Where the invocation API is, and who we are to it.
#[derive(Clone)]
pub struct LambdaEndpoint {
    /// `http://127.0.0.1:4566`, `https://lambda.eu-central-1.amazonaws.com`; or a whole address that ends with
    /// `/invocations`, as the runtime emulator has it.
    pub url: String,
    /// Access key and secret key; unsigned when absent.
    pub credentials: Option<(String, String)>,
    /// Region that goes into signatures.
    pub region: String,
    /// How long one invocation may take.
    pub timeout: Duration,
}

impl fmt::Debug for LambdaEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LambdaEndpoint").field("url", &self.url).field("region", &self.region).finish_non_exhaustive()
    }
}

/// One function as a grader.
pub struct Lambda {
    endpoint: LambdaEndpoint,
    address: String,
    connector: Connector,
    clock: Clock,
    runtime: Handle,
    pause: Duration,
}

impl Lambda {
    /// The function `arn` at `endpoint`. Nothing is sent yet. Requests run on `runtime`; it must not be the one
    /// whose thread calls [`Grader::grade`].
    pub fn new(endpoint: LambdaEndpoint, arn: &str, clock: Clock, runtime: Handle) -> Self {
        let address = if endpoint.url.ends_with("/invocations") {
            endpoint.url.clone()
        } else {
            let function = utf8_percent_encode(arn, SEGMENT);
            format!("{}/2015-03-31/functions/{function}/invocations", endpoint.url.trim_end_matches('/'))
        };
        let connector = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build();
        Self { endpoint, address, connector, clock, runtime, pause: PAUSE }
    }

    /// The grades of all samples; what fails is tried again.
    async fn all(&self, samples: &[Sample<'_>]) -> Vec<Graded> {
        let mut grades: Vec<Graded> = vec![Err("it was never asked".into()); samples.len()];
        for (attempt, together) in TOGETHER.into_iter().enumerate() {
            let open: Vec<usize> = (0..samples.len()).filter(|sample| grades[*sample].is_err()).collect();
            if open.is_empty() {
                break;
            }
            if attempt > 0 {
                tokio::time::sleep(self.pause * (1u32 << (attempt - 1))).await;
            }
            let asked = open.chunks(together).map(|chunk| async move {
                let asked: Vec<&Sample<'_>> = chunk.iter().map(|sample| &samples[*sample]).collect();
                (chunk, self.some(&asked).await)
            });
            let mut replies = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
            while let Some((chunk, reply)) = replies.next().await {
                for (place, sample) in chunk.iter().enumerate() {
                    grades[*sample] = match &reply {
                        Ok(graded) => graded[place].clone(),
                        Err(why) => Err(why.clone()),
                    };
                }
            }
        }
        grades
    }

    /// The grades of the samples of one invocation, or why there are none.
    async fn some(&self, samples: &[&Sample<'_>]) -> std::result::Result<Vec<Graded>, String> {
        let body = Value::Array(samples.iter().map(|sample| event(sample)).collect()).to_string();
        let reply = tokio::time::timeout(self.endpoint.timeout, self.invoke(body)).await;
        let reply = reply.map_err(|_| format!("no reply within {} seconds", self.endpoint.timeout.as_secs_f64()))??;
        read(&reply, samples)
    }

    async fn invoke(&self, body: String) -> std::result::Result<Vec<u8>, String> {
        let request = self.signed(body).map_err(|cause| format!("the request cannot be made: {cause}"))?;
        let response = self.connector.call(request).await.map_err(|cause| {
            let cause = anyhow::Error::from(cause);
            format!("{} does not answer: {cause:#}", self.endpoint.url)
        })?;
        let status = response.status().as_u16();
        let failed = response.headers().get("x-amz-function-error").map(str::to_string);
        let limited = http_body_util::Limited::new(response.into_body(), LARGEST);
        let bytes = limited.collect().await.map_err(|cause| format!("the reply breaks off: {cause}"))?.to_bytes();
        match (status, failed) {
            (200, None) => Ok(bytes.to_vec()),
            (200, Some(kind)) => Err(format!("the function failed ({kind}): {}", beginning(&bytes))),
            (status, _) => Err(format!("the endpoint answered {status}: {}", beginning(&bytes))),
        }
    }

    fn signed(&self, body: String) -> anyhow::Result<HttpRequest> {
        let mut request = Request::post(&self.address)
            .header("content-type", "application/json")
            .header("x-amz-invocation-type", "RequestResponse")
            .body(())?;
        if let Some((access_key, secret_key)) = &self.endpoint.credentials {
            let identity = Credentials::new(access_key, secret_key, None, None, "tunesmith").into();
            let time = UNIX_EPOCH + Duration::from_millis(u64::try_from(self.clock.now())?);
            let parameters = SigningParams::builder()
                .identity(&identity)
                .region(&self.endpoint.region)
                .name("lambda")
                .time(time)
                .settings(SigningSettings::default())
                .build()?;
            let headers =
                request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
            let signable = SignableRequest::new("POST", &self.address, headers, SignableBody::Bytes(body.as_bytes()))?;
            let (instructions, _) = sign(signable, &parameters.into())?.into_parts();
            instructions.apply_to_request_http1x(&mut request);
        }
        Ok(request.map(|()| SdkBody::from(body)).try_into()?)
    }
}

impl Grader for Lambda {
    fn grade(&self, samples: &[Sample<'_>], stop: &StopFlag) -> Result<Vec<Graded>> {
        self.runtime.block_on(async {
            let told = async {
                while !stop.is_raised() {
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::select! {
                grades = self.all(samples) => Ok(grades),
                () = told => Err(Error::unavailable(anyhow::anyhow!("the run was asked to stop while samples were graded"))),
            }
        })
    }
}

/// What the function is given for one sample: the record's own members both beside the messages and within
/// `metadata`, because Amazon's examples read them in either place.
fn event(sample: &Sample<'_>) -> Value {
    let mut event = Map::new();
    event.insert("id".into(), sample.id.into());
    event.insert("messages".into(), sample.messages.into());
    event.insert("metadata".into(), Value::Object(sample.item.clone()));
    for (name, value) in sample.item {
        event.entry(name.as_str()).or_insert_with(|| value.clone());
    }
    Value::Object(event)
}

/// The grades in a reply, in the order of the samples.
fn read(reply: &[u8], samples: &[&Sample<'_>]) -> std::result::Result<Vec<Graded>, String> {
    let nonsense = |what: &str| {
        let expected = json!([{ "id": "…", "aggregate_reward_score": 1.0, "metrics_list": [] }]);
        format!("{what}: {}; expected {expected}", beginning(reply))
    };
    let value: Value = serde_json::from_slice(reply).map_err(|_| nonsense("the reply is not JSON"))?;
    let entries = value.as_array().ok_or_else(|| nonsense("the reply is no list"))?;
    let by_id: BTreeMap<&str, &Value> =
        entries.iter().filter_map(|entry| Some((entry.get("id")?.as_str()?, entry))).collect();
    let one = |sample: &&Sample<'_>| -> Graded {
        let entry = by_id.get(sample.id).ok_or("the reply has no entry with its id")?;
        let score = entry.get("aggregate_reward_score").and_then(Value::as_f64);
        let reward = finite(score.ok_or("its entry has no number as aggregate_reward_score")?)?;
        let metrics = entry.get("metrics_list").and_then(Value::as_array).into_iter().flatten();
        let part = |metric: &Value| Some((metric.get("name")?.as_str()?.to_string(), metric.get("value")?.as_f64()?));
        Ok(Grade { reward, parts: metrics.filter_map(part).collect() })
    };
    Ok(samples.iter().map(one).collect())
}

/// How a reply begins, for a message.
fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let first: String = text.chars().take(200).collect();
    if first.len() < text.len() { format!("{first}…") } else { first }
}

#[cfg(test)]
mod tests;
