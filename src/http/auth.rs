//! Who calls: a SigV4 signature or a bearer key, both from table `access_keys`. The check has two
//! halves. [`Claim::from_head`] finds the key, so that strangers are turned away before their body is
//! read; [`Claim::verify`] proves a signature, which covers the body.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::reply::{Failure, refuse};
use super::sigv4;
use crate::app::App;
use crate::error::Error;
use crate::store::keys;

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
    Bearer(Caller),
    Signed { caller: Caller, secret: String, signature: sigv4::Signature, region: String },
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
                true => Ok(Self::Bearer(Caller { account: key.account_id })),
                false => Err(Denied::BearerKey),
            };
        }

        let signature = sigv4::Signature::from_head(header, parts, now, &app.config.region)?;
        let signing = keys::signing(&app.db, &signature.key_id).await?.ok_or(Denied::UnknownKey)?;
        if !signing.key.is_valid(now) {
            return Err(if signing.key.revoked_at.is_some() { Denied::UnknownKey } else { Denied::ExpiredKey });
        }
        Ok(Self::Signed {
            caller: Caller { account: signing.key.account_id },
            secret: signing.secret,
            signature,
            region: app.config.region.clone(),
        })
    }

    /// Settles the claim, now that the body is here.
    pub(super) fn verify(self, parts: &Parts, body: &[u8]) -> Result<Caller, Denied> {
        match self {
            Self::Bearer(caller) => Ok(caller),
            Self::Signed { caller, secret, signature, region } => {
                signature.verify(&secret, &region, parts, body)?;
                Ok(caller)
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Denied::MissingToken.into_response())
    }
}
