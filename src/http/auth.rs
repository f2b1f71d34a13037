//! Who calls: a SigV4 signature or a bearer key, both from table `access_keys`. The check has two
//! halves. [`Claim::from_head`] finds the key, so that strangers are turned away before their body is
//! read; [`Claim::verify`] proves a signature, which covers the body.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::reply::{Failure, refuse};
use super::sigv4;
use crate::app::App;
use crate::error::Error;
use crate::store::keys::{self, Key, SigningKey};

/// What temporary credentials send beside their signature.
const SESSION_TOKEN: &str = "x-amz-security-token";

/// The account on whose behalf a request acts. Handlers take it as an argument; without a verified key
/// there is none.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Twelve digits; every query names them.
    pub account: String,
}

/// Why a caller was turned away: AWS-wide names, all of them 403.
#[derive(Debug)]
pub enum Denied {
    /// No `Authorization` header.
    MissingToken,
    /// The key is unknown or revoked.
    UnknownKey,
    /// The key was given an end, which is past.
    ExpiredKey,
    /// The signature does not fit the request; the text says what to look at.
    Signature(String),
    /// The bearer key is unknown, revoked or expired.
    BearerKey,
    /// The key could not be looked up.
    Failed(Error),
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let (name, message) = match self {
            Self::MissingToken => ("MissingAuthenticationTokenException", "Missing Authentication Token".to_string()),
            Self::UnknownKey => {
                ("UnrecognizedClientException", "The security token included in the request is invalid.".to_string())
            }
            Self::ExpiredKey => {
                ("ExpiredTokenException", "The security token included in the request is expired".to_string())
            }
            Self::Signature(message) => ("InvalidSignatureException", message),
            Self::BearerKey => ("AccessDeniedException", "The bearer key is not valid".to_string()),
            Self::Failed(error) => return error.into_response(),
        };
        let mut reply = refuse(StatusCode::FORBIDDEN, name, &message);
        reply.extensions_mut().insert(Failure(format!("{name}: {message}")));
        reply
    }
}

/// A key that exists, and, for a signature, the proof still owed.
pub(super) enum Claim {
    Bearer(Key),
    Signed { key: Box<SigningKey>, signature: sigv4::Signature },
}

impl Claim {
    /// Finds the key the head names.
    pub(super) async fn from_head(app: &App, parts: &Parts) -> Result<Self, Denied> {
        let header = parts.headers.get(header::AUTHORIZATION).ok_or(Denied::MissingToken)?;
        let header = header.to_str().map_err(|_| Denied::MissingToken)?;
        let now = app.clock.now();

        if let Some((scheme, secret)) = header.split_once(' ')
            && scheme.eq_ignore_ascii_case("bearer")
        {
            let key = keys::bearer(&app.db, secret.trim()).await?.ok_or(Denied::BearerKey)?;
            return match key.is_valid(now) {
                true => Ok(Self::Bearer(key)),
                false => Err(Denied::BearerKey),
            };
        }

        let signature = sigv4::Signature::from_head(header, parts, now, &app.config.region)?;
        let signing = keys::signing(&app.db, &signature.key_id).await?.ok_or(Denied::UnknownKey)?;
        if !token_fits(signing.token_digest.as_deref(), &parts.headers) {
            return Err(Denied::UnknownKey);
        }
        if !signing.key.is_valid(now) {
            return Err(if signing.key.revoked_at.is_some() { Denied::UnknownKey } else { Denied::ExpiredKey });
        }
        Ok(Self::Signed { key: Box::new(signing), signature })
    }

    /// Settles the claim, now that the body is here, and gives the key that was proved.
    pub(super) fn verify(self, parts: &Parts, body: &[u8]) -> Result<Key, Denied> {
        match self {
            Self::Bearer(key) => Ok(key),
            Self::Signed { key, signature } => {
                signature.verify(&key.secret, parts, body)?;
                Ok(key.key)
            }
        }
    }
}

/// A temporary key comes with its one session token, a lasting key with none. That the token is signed,
/// like every `x-amz-` header, is for the signature to say.
fn token_fits(digest: Option<&str>, headers: &HeaderMap) -> bool {
    let mut sent = headers.get_all(SESSION_TOKEN).iter();
    match (digest, sent.next(), sent.next()) {
        (None, None, _) => true,
        (Some(digest), Some(token), None) => {
            let sent = token.to_str().map(keys::bearer_digest).unwrap_or_default();
            bool::from(sent.as_bytes().ct_eq(digest.as_bytes()))
        }
        _ => false,
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Denied::MissingToken.into_response())
    }
}
