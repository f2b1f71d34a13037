//! The embedded object store: a bucket is its maker's, for every operation that S3 clients send.

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};

use super::OTHER;
use crate::support::{TestApp, with_app};

/// Status and code of what went wrong; panics when nothing did.
macro_rules! refused {
    ($sent:expr) => {{
        let error = $sent.send().await.map(drop).unwrap_err();
        let status = error.raw_response().map(|reply| reply.status().as_u16()).unwrap();
        let code = aws_sdk_s3::error::ProvideErrorMetadata::code(&error).unwrap_or_default().to_string();
        (status, code)
    }};
}

fn denied() -> (u16, String) {
    (403, "AccessDenied".to_string())
}

async fn prepare(app: &TestApp) -> (aws_sdk_s3::Client, aws_sdk_s3::Client, String) {
    app.upload("s3://tuning/there", "secret").await;
    app.upload("s3://tuning/shared/a", "shared").await;
    let (owner, other) = (app.s3(&app.root), app.s3(&app.stranger().await));
    let upload = owner.create_multipart_upload().bucket("tuning").key("big").send().await.unwrap();
    other.create_bucket().bucket("theirs").send().await.unwrap();
    other.put_object().bucket("theirs").key("own").body(b"own".to_vec().into()).send().await.unwrap();
    (owner, other, upload.upload_id.unwrap())
}

#[test]
fn no_s3_operation_of_another_account_reaches_into_a_bucket() {
    with_app(async |app| {
        let (owner, other, upload) = prepare(&app).await;
        for key in ["there", "nothing"] {
            // Without a body there is no code.
            assert_eq!(refused!(other.head_object().bucket("tuning").key(key)).0, 403);
            assert_eq!(refused!(other.get_object().bucket("tuning").key(key)), denied(), "{key}");
            assert_eq!(refused!(other.put_object().bucket("tuning").key(key).body(b"x".to_vec().into())), denied());
            assert_eq!(refused!(other.delete_object().bucket("tuning").key(key)), denied());
            let keys =
                Delete::builder().objects(ObjectIdentifier::builder().key(key).build().unwrap()).build().unwrap();
            assert_eq!(refused!(other.delete_objects().bucket("tuning").delete(keys)), denied());
            let source = format!("tuning/{key}");
            assert_eq!(refused!(other.copy_object().bucket("theirs").key("copy").copy_source(&source)), denied());
            assert_eq!(refused!(other.copy_object().bucket("tuning").key(key).copy_source("theirs/own")), denied());
            assert_eq!(refused!(other.create_multipart_upload().bucket("tuning").key(key)), denied());
            assert_eq!(refused!(other.list_parts().bucket("tuning").key(key).upload_id(&upload)), denied());
            let own = other.create_multipart_upload().bucket("theirs").key("own").send().await.unwrap();
            let part = other.upload_part_copy().bucket("theirs").key("own").upload_id(own.upload_id.unwrap());
            assert_eq!(refused!(part.part_number(1).copy_source(&source)), denied());
            assert_eq!(refused!(other.get_object_tagging().bucket("tuning").key(key)), denied());
        }
        let parts = CompletedMultipartUpload::builder()
            .parts(CompletedPart::builder().part_number(1).e_tag("x").build())
            .build();
        let completed = other.complete_multipart_upload().bucket("tuning").key("big").upload_id(&upload);
        assert_eq!(refused!(completed.multipart_upload(parts)), denied());
        assert_eq!(refused!(other.abort_multipart_upload().bucket("tuning").key("big").upload_id(&upload)), denied());
        let part = other.upload_part().bucket("tuning").key("big").upload_id(&upload).part_number(1);
        assert_eq!(refused!(part.body(b"x".to_vec().into())), denied());
        // An upload is one of its own bucket, whichever bucket the request names.
        assert_eq!(refused!(other.abort_multipart_upload().bucket("theirs").key("big").upload_id(&upload)).0, 404);
        assert_eq!(refused!(other.list_objects().bucket("tuning")), denied());
        assert_eq!(refused!(other.list_objects_v2().bucket("tuning").prefix("shared/")), denied());
        assert_eq!(refused!(other.list_multipart_uploads().bucket("tuning")), denied());
        assert_eq!(refused!(other.get_bucket_location().bucket("tuning")), denied());
        assert_eq!(refused!(other.get_bucket_policy().bucket("tuning")), denied());
        assert_eq!(refused!(other.head_bucket().bucket("tuning")).0, 403);
        assert_eq!(refused!(other.delete_bucket().bucket("tuning")), denied());
        assert_eq!(refused!(other.create_bucket().bucket("tuning")), (409, "BucketAlreadyExists".into()));
        let listed = other.list_buckets().send().await.unwrap();
        let names: Vec<_> = listed.buckets().iter().filter_map(|bucket| bucket.name()).collect();
        assert_eq!(names, ["theirs"], "an account is shown its own buckets");
        let expecting = owner.get_object().bucket("tuning").key("there").expected_bucket_owner(OTHER);
        assert_eq!(refused!(expecting), denied());

        let kept = owner.get_object().bucket("tuning").key("there").send().await.unwrap();
        assert_eq!(kept.body.collect().await.unwrap().to_vec(), b"secret");
        assert_eq!(refused!(owner.get_object().bucket("theirs").key("own")), denied(), "the first account has no more");
        app
    });
}

#[test]
fn a_granted_folder_opens_as_such_in_the_object_store_too() {
    with_app(async |app| {
        let (_, other, _) = prepare(&app).await;
        assert!(app.command("accounts", &["create", "--name=research", "--id=222222222222"]).0);
        assert!(app.command("accounts", &["grant", OTHER, "s3://tuning/shared"]).0);
        other.get_object().bucket("tuning").key("shared/a").send().await.unwrap();
        other.put_object().bucket("tuning").key("shared/b").body(b"b".to_vec().into()).send().await.unwrap();
        other.head_bucket().bucket("tuning").send().await.unwrap();
        let listed = other.list_objects_v2().bucket("tuning").prefix("shared/").send().await.unwrap();
        assert_eq!(listed.key_count(), Some(2));
        let keys = |keys: &[&str]| {
            let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(*key).build().unwrap());
            Delete::builder().set_objects(Some(objects.collect())).build().unwrap()
        };
        other.delete_objects().bucket("tuning").delete(keys(&["shared/b"])).send().await.unwrap();
        let both = other.delete_objects().bucket("tuning").delete(keys(&["shared/a", "there"]));
        assert_eq!(refused!(both), denied());
        for prefix in ["", "shared", "sh"] {
            assert_eq!(refused!(other.list_objects_v2().bucket("tuning").prefix(prefix)), denied(), "{prefix}");
        }
        assert_eq!(refused!(other.get_object().bucket("tuning").key("there")), denied());
        assert_eq!(refused!(other.get_object().bucket("tuning").key("shared-not/a")), denied());
        assert_eq!(refused!(other.delete_bucket().bucket("tuning")), denied());
        app
    });
}

#[test]
fn a_bucket_that_assignments_name_is_made_by_whom_the_whole_of_it_is_assigned_to_or_by_root() {
    with_app(async |app| {
        let (root, other) = (app.s3(&app.root), app.s3(&app.stranger().await));
        let third = "333333333333";
        for (name, id) in [("--name=research", OTHER), ("--name=third", third)] {
            assert!(app.command("accounts", &["create", name, &format!("--id={id}")]).0);
        }
        let third_pair = app.create_pair(&["--account=333333333333"]);
        let third_s3 = app.s3(&third_pair);
        assert!(app.command("accounts", &["grant", OTHER, "s3://reserved", "s3://promised"]).0);
        assert!(app.command("accounts", &["grant", third, "s3://reserved/inbox", "s3://folders/third"]).0);
        assert!(app.command("accounts", &["grant", OTHER, "s3://folders/research"]).0);
        let taken = (409, "BucketAlreadyExists".to_string());
        // A folder of a bucket makes nobody its owner.
        assert_eq!(refused!(other.create_bucket().bucket("folders")), denied());
        assert_eq!(refused!(third_s3.create_bucket().bucket("folders")), denied());
        assert_eq!(refused!(third_s3.create_bucket().bucket("reserved")), denied());
        assert_eq!(refused!(third_s3.create_bucket().bucket("promised")), taken);
        // Root makes what is assigned in folders alone, and nothing of which the whole is assigned.
        for whole in ["reserved", "promised"] {
            assert_eq!(refused!(root.create_bucket().bucket(whole)), taken, "{whole}");
            other.create_bucket().bucket(whole).send().await.unwrap();
        }
        root.create_bucket().bucket("folders").send().await.unwrap();
        third_s3.put_object().bucket("folders").key("third/a").body(b"a".to_vec().into()).send().await.unwrap();
        assert_eq!(refused!(third_s3.get_object().bucket("folders").key("research/a")), denied());
        // After its owner removed it the name is no more open than before.
        third_s3.delete_object().bucket("folders").key("third/a").send().await.unwrap();
        root.delete_bucket().bucket("folders").send().await.unwrap();
        assert_eq!(refused!(third_s3.create_bucket().bucket("folders")), denied());
        third_s3.create_bucket().bucket("in-no-assignment").send().await.unwrap();
        app
    });
}
