//! The S3 operations that are served; every other one answers `NotImplemented`, which is what the
//! trait's default bodies say.

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::Settings;
use super::buckets::check;
use super::conditions::Writing;
use super::index::Index;
use super::settings::Kind;
use super::unused;
use super::walls::holder;
use crate::clock::Clock;
use crate::error::Result;

/// The store behind the protocol.
pub(super) struct Operations {
    index: Index,
    region: String,
    /// Owns what the service itself makes.
    account: String,
}

impl Operations {
    pub(super) async fn open(settings: &Settings, clock: Clock) -> Result<Self> {
        let Settings { folder, region, account, .. } = settings;
        let index = Index::open(folder, account, clock).await?;
        Ok(Self { index, region: region.clone(), account: account.clone() })
    }

    pub(super) fn index(&self) -> Index {
        self.index.clone()
    }

    /// The owner of a bucket as it is shown.
    async fn owner(&self, bucket: &str) -> S3Result<Owner> {
        let owner = self.index.owner(bucket).await?;
        Ok(unused::owner(&owner.unwrap_or_else(|| self.account.clone())))
    }
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Operations {
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        check(&request.input, &self.region)?;
        let holder = holder(&request)?;
        let owner = holder.account.as_deref().unwrap_or(&self.account);
        self.index.create_bucket(&request.input.bucket, owner).await.map(S3Response::new)
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        self.index.head_bucket(&request.input.bucket, &self.region).await.map(S3Response::new)
    }

    async fn delete_bucket(&self, request: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
        self.index.delete_bucket(&request.input.bucket).await?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn list_buckets(&self, request: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        let holder = holder(&request)?;
        let account = holder.account.as_deref();
        let mut listed = self.index.list_buckets(request.input, account, &self.region).await?;
        listed.owner = Some(unused::owner(account.unwrap_or(&self.account)));
        Ok(S3Response::new(listed))
    }

    async fn get_bucket_location(&self, request: S3Request<GetBucketLocationInput>) -> Answer<GetBucketLocationOutput> {
        self.index.bucket_location(&request.input.bucket, &self.region).await.map(S3Response::new)
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        self.index.put_object(request).await.map(S3Response::new)
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        self.index.get_object(request.input).await.map(S3Response::new)
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let (output, tags) = self.index.head_object(request.input).await?;
        let mut response = S3Response::new(output);
        if tags > 0 {
            response.headers.insert("x-amz-tagging-count", tags.into());
        }
        Ok(response)
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        self.index.copy_object(request.input).await.map(S3Response::new)
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        let input = request.input;
        if input.version_id.as_deref().is_some_and(|version| version != "null") {
            return Err(s3_error!(NotImplemented, "Versions are not implemented"));
        }
        if input.if_match_last_modified_time.is_some() || input.if_match_size.is_some() {
            return Err(s3_error!(NotImplemented, "Deletes are conditional on the ETag only"));
        }
        let writing = Writing { if_match: input.if_match, if_none_match: None };
        self.index.delete_object(input.bucket, input.key, writing).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        self.index.delete_objects(request.input).await.map(S3Response::new)
    }

    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        self.index.list_objects(request.input).await.map(S3Response::new)
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        self.index.list_objects_v2(request.input).await.map(S3Response::new)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        self.index.create_upload(request.input).await.map(S3Response::new)
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.index.upload_part(request).await.map(S3Response::new)
    }

    async fn upload_part_copy(&self, request: S3Request<UploadPartCopyInput>) -> Answer<UploadPartCopyOutput> {
        self.index.upload_part_copy(request.input).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        self.index.complete_upload(request.input).await.map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        let input = request.input;
        self.index.abort_upload(input.bucket, input.key, input.upload_id).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        self.index.list_parts(request.input).await.map(S3Response::new)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        self.index.list_uploads(request.input).await.map(S3Response::new)
    }

    async fn get_object_attributes(
        &self,
        request: S3Request<GetObjectAttributesInput>,
    ) -> Answer<GetObjectAttributesOutput> {
        self.index.attributes(request.input).await.map(S3Response::new)
    }

    async fn list_object_versions(
        &self,
        request: S3Request<ListObjectVersionsInput>,
    ) -> Answer<ListObjectVersionsOutput> {
        let owner = self.owner(&request.input.bucket).await?;
        self.index.list_versions(request.input, &owner).await.map(S3Response::new)
    }

    async fn get_object_tagging(&self, request: S3Request<GetObjectTaggingInput>) -> Answer<GetObjectTaggingOutput> {
        unversioned(request.input.version_id.as_deref())?;
        self.index.get_object_tags(&request.input.bucket, &request.input.key).await.map(S3Response::new)
    }

    async fn put_object_tagging(&self, request: S3Request<PutObjectTaggingInput>) -> Answer<PutObjectTaggingOutput> {
        let input = request.input;
        unversioned(input.version_id.as_deref())?;
        self.index.put_object_tags(&input.bucket, &input.key, input.tagging.tag_set).await?;
        Ok(S3Response::new(PutObjectTaggingOutput::default()))
    }

    async fn delete_object_tagging(
        &self,
        request: S3Request<DeleteObjectTaggingInput>,
    ) -> Answer<DeleteObjectTaggingOutput> {
        let input = request.input;
        unversioned(input.version_id.as_deref())?;
        self.index.put_object_tags(&input.bucket, &input.key, Vec::new()).await?;
        Ok(S3Response::with_status(DeleteObjectTaggingOutput::default(), hyper::StatusCode::NO_CONTENT))
    }

    async fn get_bucket_tagging(&self, request: S3Request<GetBucketTaggingInput>) -> Answer<GetBucketTaggingOutput> {
        self.index.get_bucket_tags(&request.input.bucket).await.map(S3Response::new)
    }

    async fn put_bucket_tagging(&self, request: S3Request<PutBucketTaggingInput>) -> Answer<PutBucketTaggingOutput> {
        self.index.put_bucket_tags(&request.input.bucket, request.input.tagging.tag_set).await?;
        Ok(S3Response::with_status(PutBucketTaggingOutput {}, hyper::StatusCode::NO_CONTENT))
    }

    async fn delete_bucket_tagging(
        &self,
        request: S3Request<DeleteBucketTaggingInput>,
    ) -> Answer<DeleteBucketTaggingOutput> {
        self.index.delete_setting(&request.input.bucket, Kind::Tags).await?;
        Ok(S3Response::with_status(DeleteBucketTaggingOutput {}, hyper::StatusCode::NO_CONTENT))
    }

    async fn get_bucket_cors(&self, request: S3Request<GetBucketCorsInput>) -> Answer<GetBucketCorsOutput> {
        self.index.get_cors(&request.input.bucket).await.map(S3Response::new)
    }

    async fn put_bucket_cors(&self, request: S3Request<PutBucketCorsInput>) -> Answer<PutBucketCorsOutput> {
        self.index.put_cors(&request.input.bucket, request.input.cors_configuration).await?;
        Ok(S3Response::new(PutBucketCorsOutput {}))
    }

    async fn delete_bucket_cors(&self, request: S3Request<DeleteBucketCorsInput>) -> Answer<DeleteBucketCorsOutput> {
        self.index.delete_setting(&request.input.bucket, Kind::Cors).await?;
        Ok(S3Response::with_status(DeleteBucketCorsOutput {}, hyper::StatusCode::NO_CONTENT))
    }

    // Features that no bucket here has.

    async fn get_bucket_acl(&self, request: S3Request<GetBucketAclInput>) -> Answer<GetBucketAclOutput> {
        let answer = unused::bucket_acl(self.owner(&request.input.bucket).await?);
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_object_acl(&self, request: S3Request<GetObjectAclInput>) -> Answer<GetObjectAclOutput> {
        unversioned(request.input.version_id.as_deref())?;
        self.index.hold(&request.input.bucket, &request.input.key).await?;
        Ok(S3Response::new(unused::object_acl(self.owner(&request.input.bucket).await?)))
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> Answer<GetBucketVersioningOutput> {
        let answer = GetBucketVersioningOutput::default();
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_bucket_logging(&self, request: S3Request<GetBucketLoggingInput>) -> Answer<GetBucketLoggingOutput> {
        let answer = GetBucketLoggingOutput::default();
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_bucket_notification_configuration(
        &self,
        request: S3Request<GetBucketNotificationConfigurationInput>,
    ) -> Answer<GetBucketNotificationConfigurationOutput> {
        let answer = GetBucketNotificationConfigurationOutput::default();
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_bucket_accelerate_configuration(
        &self,
        request: S3Request<GetBucketAccelerateConfigurationInput>,
    ) -> Answer<GetBucketAccelerateConfigurationOutput> {
        let answer = GetBucketAccelerateConfigurationOutput::default();
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_bucket_request_payment(
        &self,
        request: S3Request<GetBucketRequestPaymentInput>,
    ) -> Answer<GetBucketRequestPaymentOutput> {
        let answer = GetBucketRequestPaymentOutput { payer: Some(Payer::from_static(Payer::BUCKET_OWNER)) };
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_bucket_ownership_controls(
        &self,
        request: S3Request<GetBucketOwnershipControlsInput>,
    ) -> Answer<GetBucketOwnershipControlsOutput> {
        let answer = GetBucketOwnershipControlsOutput { ownership_controls: Some(unused::ownership()) };
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_public_access_block(
        &self,
        request: S3Request<GetPublicAccessBlockInput>,
    ) -> Answer<GetPublicAccessBlockOutput> {
        let answer = GetPublicAccessBlockOutput { public_access_block_configuration: Some(unused::public_access()) };
        self.index.untouched(&request.input.bucket, S3Response::new(answer)).await
    }

    async fn get_bucket_policy_status(
        &self,
        request: S3Request<GetBucketPolicyStatusInput>,
    ) -> Answer<GetBucketPolicyStatusOutput> {
        self.index.without(&request.input.bucket, unused::no_policy).await
    }

    async fn get_bucket_policy(&self, request: S3Request<GetBucketPolicyInput>) -> Answer<GetBucketPolicyOutput> {
        self.index.without(&request.input.bucket, unused::no_policy).await
    }

    async fn get_bucket_lifecycle_configuration(
        &self,
        request: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> Answer<GetBucketLifecycleConfigurationOutput> {
        self.index.without(&request.input.bucket, unused::no_lifecycle).await
    }

    async fn get_bucket_encryption(
        &self,
        request: S3Request<GetBucketEncryptionInput>,
    ) -> Answer<GetBucketEncryptionOutput> {
        self.index.without(&request.input.bucket, unused::no_encryption).await
    }

    async fn get_bucket_website(&self, request: S3Request<GetBucketWebsiteInput>) -> Answer<GetBucketWebsiteOutput> {
        self.index.without(&request.input.bucket, unused::no_website).await
    }

    async fn get_bucket_replication(
        &self,
        request: S3Request<GetBucketReplicationInput>,
    ) -> Answer<GetBucketReplicationOutput> {
        self.index.without(&request.input.bucket, unused::no_replication).await
    }

    async fn get_object_lock_configuration(
        &self,
        request: S3Request<GetObjectLockConfigurationInput>,
    ) -> Answer<GetObjectLockConfigurationOutput> {
        self.index.without(&request.input.bucket, unused::no_object_lock).await
    }
}

/// # Errors
/// `NoSuchVersion` for a version other than the only one.
fn unversioned(version: Option<&str>) -> S3Result<()> {
    match version {
        Some(version) if version != "null" => Err(s3_error!(NoSuchVersion, "The specified version does not exist.")),
        _ => Ok(()),
    }
}
