//! Who may do what: every request is signed by a key, a key belongs to an account, and a bucket belongs to the account
//! that made it. Another account gets in where the operator assigned it a part of the bucket; a limited key gets no
//! further than its limits. The service's own key stands above the walls and belongs to no user.

use std::cell::RefCell;
use std::sync::Arc;

use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{
    CopyObjectInput, CopySource, DeleteObjectsInput, ListMultipartUploadsInput, ListObjectsInput, ListObjectsV2Input,
    UploadPartCopyInput,
};
use s3s::path::S3Path;
use s3s::{S3Error, S3Request, S3Result, s3_error};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::index::{Index, fault};
use super::objects::source;
use crate::error::{Error, Kind, Result};
use crate::objects::Grants;

/// What temporary credentials send beside their signature: a header, or a parameter of a presigned link.
const SESSION_TOKEN: &str = "x-amz-security-token";
const EXPECTED_OWNER: &str = "x-amz-expected-bucket-owner";
const EXPECTED_SOURCE_OWNER: &str = "x-amz-source-expected-bucket-owner";

/// A key that opens the store, and whose it is.
#[derive(Clone)]
pub struct Holder {
    /// What its signatures are made with.
    pub secret: String,
    /// The account it belongs to; `None` is the service itself, which acts for every account.
    pub account: Option<String>,
    /// SHA-256, in hex, of the session token that must come with it.
    pub token_digest: Option<String>,
    /// What narrows it further.
    pub limits: Option<Arc<dyn Limits>>,
}

/// What a limited key may do within its account.
pub trait Limits: Send + Sync {
    /// Whether it may read (or, with `writes`, change) the object, or the whole listing, at `s3://bucket/key`.
    fn allow(&self, place: &str, writes: bool) -> bool;
}

/// Who may come in: asked anew at every request, so a revoked key stops working at once.
#[async_trait::async_trait]
pub trait Keys: Send + Sync + 'static {
    /// The holder of an access key, or `None` when nobody holds it (any more).
    async fn holder(&self, access_key: &str) -> Result<Option<Holder>>;

    /// The folders of a bucket that the operator assigned to the account; `""` is the whole bucket.
    async fn assigned(&self, _account: &str, _bucket: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Whether the account may make a bucket of this name, and own it with everything in it.
    async fn may_create(&self, _account: &str, _bucket: &str) -> Result<bool> {
        Ok(true)
    }
}

tokio::task_local! {
    /// Whose key signs the request that this task answers: found once, when the signature is checked.
    static SIGNER: RefCell<Option<(String, Arc<Holder>)>>;
}

/// Answers a request with room to remember who signed it.
pub(super) async fn remembering<T>(answer: impl Future<Output = T>) -> T {
    SIGNER.scope(RefCell::new(None), answer).await
}

/// The wall: authentication and access of `s3s`.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) keys: Arc<dyn Keys>,
    pub(super) index: Index,
}

/// Whose request it is; operations find it among the request's extensions.
pub(super) fn holder<T>(request: &S3Request<T>) -> S3Result<Arc<Holder>> {
    request.extensions.get::<Arc<Holder>>().cloned().ok_or_else(denied)
}

#[async_trait::async_trait]
impl S3Auth for Gate {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let holder = self.look_up(access_key).await?;
        let secret = SecretKey::from(holder.secret.clone());
        // Outside of a request that is answered there is nothing to remember it for.
        let _ = SIGNER.try_with(|signer| signer.replace(Some((access_key.to_string(), holder))));
        Ok(secret)
    }
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(access_key) = cx.credentials().map(|credentials| credentials.access_key.clone()) else {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        };
        let holder = self.signer(&access_key).await?;
        token_fits(&holder, cx)?;
        if let Some(grants) = self.admit(&holder, cx).await? {
            cx.extensions_mut().insert(Arc::new(grants));
        }
        cx.extensions_mut().insert(holder);
        Ok(())
    }

    async fn copy_object(&self, request: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        self.admit_source(request, &request.input.copy_source).await
    }

    async fn upload_part_copy(&self, request: &mut S3Request<UploadPartCopyInput>) -> S3Result<()> {
        self.admit_source(request, &request.input.copy_source).await
    }

    async fn delete_objects(&self, request: &mut S3Request<DeleteObjectsInput>) -> S3Result<()> {
        let holder = holder(request)?;
        let bucket = &request.input.bucket;
        let Some(grants) = granted(request, &holder)? else { return Ok(()) };
        let may_delete = |key: &str| grants.holds(key) && within_limits(&holder, bucket, key, true);
        expect(request.input.delete.objects.iter().all(|object| may_delete(&object.key)))
    }

    async fn list_objects(&self, request: &mut S3Request<ListObjectsInput>) -> S3Result<()> {
        admit_listing(request, &request.input.bucket, request.input.prefix.as_deref())
    }

    async fn list_objects_v2(&self, request: &mut S3Request<ListObjectsV2Input>) -> S3Result<()> {
        admit_listing(request, &request.input.bucket, request.input.prefix.as_deref())
    }

    async fn list_multipart_uploads(&self, request: &mut S3Request<ListMultipartUploadsInput>) -> S3Result<()> {
        admit_listing(request, &request.input.bucket, request.input.prefix.as_deref())
    }
}

impl Gate {
    async fn look_up(&self, access_key: &str) -> S3Result<Arc<Holder>> {
        match self.keys.holder(access_key).await {
            Ok(Some(holder)) => Ok(Arc::new(holder)),
            Ok(None) => Err(unknown_key()),
            Err(error) => Err(away(&error)),
        }
    }

    async fn signer(&self, access_key: &str) -> S3Result<Arc<Holder>> {
        let remembered = SIGNER.try_with(|signer| {
            let signer = signer.borrow();
            signer.as_ref().filter(|(key, _)| key == access_key).map(|(_, holder)| Arc::clone(holder))
        });
        match remembered {
            Ok(Some(holder)) => Ok(holder),
            _ => self.look_up(access_key).await,
        }
    }

    /// Refuses an operation on a bucket, or on an object, that the holder may not do. Gives what it may use of the
    /// bucket; nothing for the service itself, and where no bucket is named.
    async fn admit(&self, holder: &Holder, cx: &S3AccessContext<'_>) -> S3Result<Option<Grants>> {
        let (bucket, key) = match cx.s3_path() {
            // Only its own buckets are listed to an account.
            S3Path::Root => return admit_listing_of_buckets(holder).map(|()| None),
            S3Path::Bucket { bucket } => (bucket, None),
            S3Path::Object { bucket, key } => (bucket, Some(key)),
        };
        let expected = cx.headers().get(EXPECTED_OWNER);
        if holder.account.is_none() && expected.is_none() {
            return Ok(None);
        }
        let owner = self.index.owner(bucket).await?;
        expect_owner(expected, owner.as_deref())?;
        let Some(account) = &holder.account else { return Ok(None) };
        let grants = self.grants(account, bucket, owner.as_deref()).await?;
        let name = cx.s3_op().name();
        let writes = !["Get", "Head", "List"].iter().any(|reads| name.starts_with(reads));
        if name == "CreateBucket" {
            if owner.is_none() && !self.keys.may_create(account, bucket).await.map_err(|error| away(&error))? {
                // Whoever has a part of it knows the name; for others it is one that somebody has.
                return Err(if grants.any() { denied() } else { super::buckets::taken() });
            }
            return expect(within_limits(holder, bucket, "", true)).map(|()| Some(grants));
        }
        if owner.is_none() {
            // At once: by the time of the operation another account may have made it.
            return Err(no_such_bucket());
        }
        let may = match (key, name) {
            (Some(key), _) => grants.holds(key) && within_limits(holder, bucket, key, writes),
            // Whoever may use a part of a bucket may know that it is there.
            (None, "HeadBucket" | "GetBucketLocation") => grants.any(),
            // Prefixes and keys are checked once they are read, below.
            (None, "ListObjects" | "ListObjectsV2" | "ListMultipartUploads" | "DeleteObjects") => grants.any(),
            (None, _) => grants.owned && within_limits(holder, bucket, "", writes),
        };
        expect(may).map(|()| Some(grants))
    }

    /// Refuses a copy of an object that the holder may not read.
    async fn admit_source<T>(&self, request: &S3Request<T>, copied: &CopySource) -> S3Result<()> {
        let holder = holder(request)?;
        let expected = request.headers.get(EXPECTED_SOURCE_OWNER);
        if holder.account.is_none() && expected.is_none() {
            return Ok(());
        }
        let (bucket, key) = source(copied)?;
        let owner = self.index.owner(bucket).await?;
        expect_owner(expected, owner.as_deref())?;
        let Some(account) = &holder.account else { return Ok(()) };
        if owner.is_none() {
            return Err(no_such_bucket());
        }
        let grants = self.grants(account, bucket, owner.as_deref()).await?;
        expect(grants.holds(key) && within_limits(&holder, bucket, key, false))
    }

    /// What an account may use of the bucket that `owner` made.
    async fn grants(&self, account: &str, bucket: &str, owner: Option<&str>) -> S3Result<Grants> {
        let owned = owner == Some(account);
        let folders = match owned {
            true => Vec::new(),
            false => self.keys.assigned(account, bucket).await.map_err(|error| away(&error))?,
        };
        Ok(Grants { owned, folders, except: Vec::new() })
    }
}

/// What the signer may use of the request's bucket, as it was found when the request came in; `None` for the service
/// itself.
fn granted<T>(request: &S3Request<T>, holder: &Holder) -> S3Result<Option<Arc<Grants>>> {
    match &holder.account {
        Some(_) => request.extensions.get().cloned().map(Some).ok_or_else(denied),
        None => Ok(None),
    }
}

/// Refuses a listing that reaches beyond what the holder may read.
fn admit_listing<T>(request: &S3Request<T>, bucket: &str, prefix: Option<&str>) -> S3Result<()> {
    let holder = holder(request)?;
    let Some(grants) = granted(request, &holder)? else { return Ok(()) };
    let prefix = prefix.unwrap_or_default();
    // A prefix without a slash at its end also begins the names of its neighbours.
    let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
    expect(grants.holds_all_under(prefix) && within_limits(&holder, bucket, folder, false))
}

fn admit_listing_of_buckets(holder: &Holder) -> S3Result<()> {
    expect(holder.limits.as_ref().is_none_or(|limits| limits.allow("s3://", false)))
}

impl Index {
    /// The account that made the bucket; `None` when there is no such bucket.
    pub(super) async fn owner(&self, bucket: &str) -> S3Result<Option<String>> {
        let owner: Option<Option<String>> = sqlx::query_scalar("SELECT owner FROM buckets WHERE name = ?")
            .bind(bucket)
            .fetch_optional(&self.pool)
            .await
            .map_err(fault)?;
        Ok(owner.map(Option::unwrap_or_default))
    }
}

/// Refuses a bucket of another owner than the caller expects; one that is not there is refused elsewhere.
fn expect_owner(expected: Option<&HeaderValue>, owner: Option<&str>) -> S3Result<()> {
    expect(expected.zip(owner).is_none_or(|(expected, owner)| expected.as_bytes() == owner.as_bytes()))
}

fn expect(may: bool) -> S3Result<()> {
    if may { Ok(()) } else { Err(denied()) }
}

fn within_limits(holder: &Holder, bucket: &str, key: &str, writes: bool) -> bool {
    holder.limits.as_ref().is_none_or(|limits| limits.allow(&format!("s3://{bucket}/{key}"), writes))
}

/// A temporary key comes with its one session token, a lasting key with none.
fn token_fits(holder: &Holder, cx: &S3AccessContext<'_>) -> S3Result<()> {
    let header = cx.headers().get(SESSION_TOKEN).map(|token| token.as_bytes().to_vec());
    let sent = header.or_else(|| token_in_query(cx));
    match (&holder.token_digest, sent) {
        (None, None) => Ok(()),
        (Some(_), None) => Err(unknown_key()),
        (Some(digest), Some(token))
            if bool::from(hex::encode(Sha256::digest(&token)).as_bytes().ct_eq(digest.as_bytes())) =>
        {
            Ok(())
        }
        _ => Err(s3_error!(InvalidToken, "The provided token is malformed or otherwise invalid.")),
    }
}

/// The session token of a presigned link.
fn token_in_query(cx: &S3AccessContext<'_>) -> Option<Vec<u8>> {
    let mut pairs = cx.uri().query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) =
        pairs.find(|(name, _)| percent_decode_str(name).decode_utf8_lossy().eq_ignore_ascii_case(SESSION_TOKEN))?;
    Some(percent_decode_str(value).collect())
}

fn no_such_bucket() -> S3Error {
    s3_error!(NoSuchBucket, "The specified bucket does not exist")
}

fn unknown_key() -> S3Error {
    s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
}

fn denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied")
}

fn away(error: &Error) -> S3Error {
    tracing::warn!("a key cannot be looked up: {}", error.log());
    match error.kind() {
        Kind::Unavailable => s3_error!(ServiceUnavailable, "Please try again"),
        // A name that no key can have.
        Kind::Validation => unknown_key(),
        _ => s3_error!(InternalError, "We encountered an internal error. Please try again."),
    }
}

#[cfg(test)]
mod tests {
    use crate::clock::Clock;

    use super::*;

    #[tokio::test]
    async fn buckets_of_a_release_without_owners_become_the_configured_accounts() {
        let folder = tempfile::tempdir().unwrap();
        let open = async || Index::open(folder.path(), "111122223333", Clock::system()).await.unwrap();
        let index = open().await;
        index.create_bucket("mine", "444455556666").await.unwrap();
        // As that release left the table.
        sqlx::query("ALTER TABLE buckets DROP COLUMN owner").execute(&index.pool).await.unwrap();
        index.pool.close().await;
        drop(index);
        let index = open().await;
        assert_eq!(index.owner("mine").await.unwrap().as_deref(), Some("111122223333"));
        index.create_bucket("new", "444455556666").await.unwrap();
        index.pool.close().await;
        drop(index);
        assert_eq!(open().await.owner("new").await.unwrap().as_deref(), Some("444455556666"), "owners stay");
    }
}
