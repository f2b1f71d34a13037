//! Answers about features that no bucket here has: those that S3 gives for a bucket that never had
//! them. Tools ask before they do anything else.

use s3s::dto::{
    GetBucketAclOutput, GetObjectAclOutput, Grant, Grantee, ObjectOwnership, Owner, OwnershipControls,
    OwnershipControlsRule, Permission, PublicAccessBlockConfiguration, Type,
};
use s3s::{S3Error, S3Result, s3_error};

use super::index::Index;

impl Index {
    /// What is said of a feature that the bucket does not have.
    ///
    /// # Errors
    /// `NoSuchBucket`, otherwise the feature's own.
    pub(super) async fn without<T>(&self, bucket: &str, error: fn() -> S3Error) -> S3Result<T> {
        self.expect_bucket(bucket).await?;
        Err(error())
    }

    /// What is said of a feature that every bucket has in its first state.
    ///
    /// # Errors
    /// `NoSuchBucket`.
    pub(super) async fn untouched<T>(&self, bucket: &str, answer: T) -> S3Result<T> {
        self.expect_bucket(bucket).await?;
        Ok(answer)
    }
}

/// An account as an owner.
pub(super) fn owner(account: &str) -> Owner {
    Owner { id: Some(account.to_string()), display_name: Some(account.to_string()) }
}

/// The owner may do everything, nobody else anything.
fn grants(owner: &Owner) -> Vec<Grant> {
    let grantee = Grantee {
        display_name: owner.display_name.clone(),
        email_address: None,
        id: owner.id.clone(),
        type_: Type::from_static(Type::CANONICAL_USER),
        uri: None,
    };
    vec![Grant { grantee: Some(grantee), permission: Some(Permission::from_static(Permission::FULL_CONTROL)) }]
}

pub(super) fn bucket_acl(owner: Owner) -> GetBucketAclOutput {
    GetBucketAclOutput { grants: Some(grants(&owner)), owner: Some(owner) }
}

pub(super) fn object_acl(owner: Owner) -> GetObjectAclOutput {
    GetObjectAclOutput { grants: Some(grants(&owner)), owner: Some(owner), request_charged: None }
}

/// Access control lists do not exist here: what is in a bucket belongs to its owner.
pub(super) fn ownership() -> OwnershipControls {
    let rule = OwnershipControlsRule {
        object_ownership: ObjectOwnership::from_static(ObjectOwnership::BUCKET_OWNER_ENFORCED),
    };
    OwnershipControls { rules: vec![rule] }
}

/// Nothing can be made public.
pub(super) fn public_access() -> PublicAccessBlockConfiguration {
    PublicAccessBlockConfiguration {
        block_public_acls: Some(true),
        block_public_policy: Some(true),
        ignore_public_acls: Some(true),
        restrict_public_buckets: Some(true),
    }
}

pub(super) fn no_policy() -> S3Error {
    s3_error!(NoSuchBucketPolicy, "The bucket policy does not exist")
}

pub(super) fn no_lifecycle() -> S3Error {
    s3_error!(NoSuchLifecycleConfiguration, "The lifecycle configuration does not exist")
}

pub(super) fn no_encryption() -> S3Error {
    let mut error = s3_error!(
        ServerSideEncryptionConfigurationNotFoundError,
        "The server side encryption configuration was not found"
    );
    error.set_status_code(hyper::StatusCode::NOT_FOUND);
    error
}

pub(super) fn no_website() -> S3Error {
    s3_error!(NoSuchWebsiteConfiguration, "The specified bucket does not have a website configuration")
}

pub(super) fn no_replication() -> S3Error {
    s3_error!(ReplicationConfigurationNotFoundError, "The replication configuration was not found")
}

pub(super) fn no_object_lock() -> S3Error {
    s3_error!(ObjectLockConfigurationNotFoundError, "Object Lock configuration does not exist for this bucket")
}
