//! Whether the object store is there and knows this service's key, without naming a bucket.

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::error::ProvideErrorMetadata;

use super::failure::explain;
use super::{Objects, Uri};
use crate::error::{Error, Kind, Result};

/// S3's codes for a key that is unknown or a signature that does not fit: no request will pass.
const UNKNOWN: [&str; 5] =
    ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed"];
/// S3's code for an address that a store does not take for its own.
const FOREIGN_HOST: &str = "InvalidHostHeader";

impl Objects {
    /// Asks the store once for the list of buckets. A store that only refuses the list is there.
    ///
    /// # Errors
    /// `AccessDenied` when it does not know the key, `Validation` with its own sentence when it does not know the address
    /// that it was asked at, `Unavailable` when it does not answer or cannot.
    pub async fn reach(&self) -> Result<()> {
        let once = aws_sdk_s3::config::Builder::new().retry_config(RetryConfig::disabled());
        let Err(error) = self.s3.list_buckets().customize().config_override(once).send().await else { return Ok(()) };
        let text = |text: Option<&str>| text.unwrap_or_default().to_string();
        let code = text(error.as_service_error().and_then(ProvideErrorMetadata::code));
        let said = text(error.as_service_error().and_then(ProvideErrorMetadata::message));
        let refused = error.raw_response().is_some_and(|reply| reply.status().as_u16() == 403);
        let explained = explain("ListBuckets", &Uri::new("", ""), error);
        match explained.kind() {
            Kind::Unavailable => Err(explained),
            _ if refused && UNKNOWN.contains(&code.as_str()) => Err(Error::new(
                Kind::AccessDenied,
                format!("Object storage does not accept this service's access key ({code})"),
            )
            .because(anyhow::anyhow!(explained.log()))),
            Kind::Validation if code == FOREIGN_HOST => {
                Err(Error::validation(format!("Object storage does not answer at this address ({code}): {said}"))
                    .because(anyhow::anyhow!(explained.log())))
            }
            _ => Ok(()),
        }
    }
}
