//! What every S3 server must do for us, run on each of them.

use std::collections::BTreeMap;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tunesmith::error::Kind;
use tunesmith::objects::{Put, Uri};

use super::servers::{Moto, Store, endpoint, not_run, setting, start};

#[tokio::test(flavor = "multi_thread")]
async fn our_own_server_passes_every_check() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let store = Store::new(&endpoint(&server.endpoint())).await;
    all(&store).await;
    parts_are_listed_and_given_up(&store).await;
    server.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_ours_passes_every_check() {
    match Moto::start() {
        Ok(moto) => all(&Store::new(&endpoint(&moto.url)).await).await,
        Err(why) => not_run(&why),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_the_environment_passes_every_check() {
    let Some(url) = setting("TEST_S3_ENDPOINT") else {
        println!("NOT RUN: TEST_S3_ENDPOINT names no server");
        return;
    };
    let mut endpoint = endpoint(&url);
    if let (Some(access), Some(secret)) = (setting("TEST_S3_ACCESS_KEY"), setting("TEST_S3_SECRET_KEY")) {
        (endpoint.access_key, endpoint.secret_key) = (access, secret);
    }
    let store = Store::new(&endpoint).await;
    all(&store).await;
    parts_are_listed_and_given_up(&store).await;
}

async fn all(store: &Store) {
    macro_rules! run {
        ($($check:ident),* $(,)?) => {$(
            println!("{}", stringify!($check));
            $check(store).await;
        )*};
    }
    run!(
        what_is_put_is_got,
        a_put_replaces,
        what_is_not_there_is_not_found,
        a_cap_is_kept,
        files_go_up_and_come_down_whole,
        a_listing_has_every_key_once_and_in_order,
        a_delimiter_rolls_keys_up,
        removing_a_folder_leaves_its_neighbours,
        a_bucket_is_ensured_twice,
        probes_speak_bedrocks_words,
        odd_keys_are_only_keys,
        ranges_and_conditions_hold,
        descriptions_come_back,
        copies_are_equal,
        parts_are_put_together,
        many_keys_are_deleted_at_once,
    );
}

async fn what_is_put_is_got(store: &Store) {
    for (key, bytes) in
        [("empty", Vec::new()), ("small", b"hello".to_vec()), ("binary", (0..=255).collect::<Vec<u8>>())]
    {
        let uri = store.at(key);
        let put = Put { content_type: Some("application/x-test"), ..Put::default() };
        store.objects.put_bytes(&uri, bytes.clone(), &put).await.unwrap();
        assert_eq!(store.objects.get_bytes(&uri, 1024).await.unwrap(), bytes, "{key}");
        let head = store.objects.head(&uri).await.unwrap();
        assert_eq!(head.size, bytes.len() as u64);
        assert_eq!(head.content_type.as_deref(), Some("application/x-test"));
        assert_eq!(head.etag, md5(&bytes));
        let mut opened = store.objects.open(&uri).await.unwrap();
        let mut read = Vec::new();
        opened.body.read_to_end(&mut read).await.unwrap();
        assert_eq!((opened.head.size, read), (bytes.len() as u64, bytes));
    }
}

async fn a_put_replaces(store: &Store) {
    let uri = store.at("replaced");
    for text in ["first, and longer", "second"] {
        store.objects.put_bytes(&uri, text, &Put::default()).await.unwrap();
        assert_eq!(store.objects.get_bytes(&uri, 100).await.unwrap(), text);
    }
}

async fn what_is_not_there_is_not_found(store: &Store) {
    let elsewhere = Uri::new("no-bucket-of-this-name-anywhere", "key");
    for uri in [store.at("missing"), elsewhere] {
        assert_eq!(store.objects.head(&uri).await.unwrap_err().kind(), Kind::NotFound);
        let error = store.objects.get_bytes(&uri, 10).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.log().contains("GetObject"), "the log says what was tried: {}", error.log());
    }
    assert_eq!(
        store
            .objects
            .put_bytes(&Uri::new("no-bucket-of-this-name-anywhere", "key"), "x", &Put::default())
            .await
            .unwrap_err()
            .kind(),
        Kind::NotFound
    );
    store.objects.delete(&store.at("missing")).await.unwrap();
}

async fn a_cap_is_kept(store: &Store) {
    let uri = store.at("capped");
    store.objects.put_bytes(&uri, vec![7; 1000], &Put::default()).await.unwrap();
    assert_eq!(store.objects.get_bytes(&uri, 1000).await.unwrap().len(), 1000);
    assert_eq!(store.objects.get_bytes(&uri, 999).await.unwrap_err().kind(), Kind::Validation);
}

async fn files_go_up_and_come_down_whole(store: &Store) {
    let folder = tempfile::tempdir().unwrap();
    // One piece, exactly the size from which parts are used, and a last part that is smaller.
    for size in [100_000, 16 << 20, (20 << 20) + 12_345] {
        let (up, down) = (folder.path().join("up"), folder.path().join("down"));
        let bytes: Vec<u8> = (0..size).map(|i: usize| (i * 31 % 251) as u8).collect();
        std::fs::write(&up, &bytes).unwrap();
        let uri = store.at("folder/file");
        let stored = store.objects.put_file(&uri, &up, &Put::default()).await.unwrap();
        let fetched = store.objects.get_to_file(&uri, &down).await.unwrap();
        assert_eq!(stored, fetched);
        assert_eq!(fetched.size, size as u64);
        assert_eq!(fetched.sha256, hex::encode(Sha256::digest(&bytes)));
        assert!(std::fs::read(&down).unwrap() == bytes, "the bytes of {size} come back");
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing half-written stays: {names:?}");
    }
    let etag = store.objects.head(&store.at("folder/file")).await.unwrap().etag;
    assert!(etag.ends_with("-2"), "{etag} is the ETag of two parts");
}

async fn a_listing_has_every_key_once_and_in_order(store: &Store) {
    // More than one page, and an order that is of bytes: upper case first, '/' before letters.
    let mut keys: Vec<String> = (0..1010).map(|i| format!("many/{i:04}")).collect();
    keys.extend(["many/Z".to_string(), "many/a/b".into(), "many/ab".into(), "many/é".into()]);
    let puts = keys
        .iter()
        .map(|key| async { store.objects.put_bytes(&store.at(key), key.clone(), &Put::default()).await.unwrap() });
    futures::stream::iter(puts).buffer_unordered(16).collect::<Vec<_>>().await;
    keys.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    let mut pages = store.objects.list(&store.at("many/"));
    let mut found = Vec::new();
    let mut count = 0;
    while let Some(page) = pages.next().await.unwrap() {
        assert!(page.len() <= 1000);
        count += 1;
        found.extend(page);
    }
    assert_eq!(count, 2);
    assert_eq!(found.iter().map(|object| object.uri.key().to_string()).collect::<Vec<_>>(), keys);
    for object in &found {
        assert_eq!(
            (object.size, object.etag.clone()),
            (object.uri.key().len() as u64, md5(object.uri.key().as_bytes()))
        );
    }
    assert!(store.objects.list(&store.at("nothing/")).all().await.unwrap().is_empty());
}

async fn a_delimiter_rolls_keys_up(store: &Store) {
    for key in ["tree/a", "tree/b/1", "tree/b/2", "tree/b-", "tree/c/1/x", "tree/d"] {
        store.objects.put_bytes(&store.at(key), "x", &Put::default()).await.unwrap();
    }
    let expected = ["tree/a", "tree/b-", "tree/b/", "tree/c/", "tree/d"];
    for size in [1, 2, 1000] {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let page = store.s3.list_objects_v2().bucket(&store.bucket).prefix("tree/").delimiter("/").max_keys(size);
            let page = page.set_continuation_token(token).send().await.unwrap();
            found.extend(page.contents().iter().map(|object| object.key().unwrap().to_string()));
            found.extend(page.common_prefixes().iter().map(|prefix| prefix.prefix().unwrap().to_string()));
            token = page.next_continuation_token().map(str::to_string);
            if page.is_truncated() != Some(true) {
                break;
            }
        }
        found.sort();
        assert_eq!(found, expected, "in pages of {size}");
    }
    let after =
        store.s3.list_objects_v2().bucket(&store.bucket).prefix("tree/").start_after("tree/b/1").send().await.unwrap();
    let after: Vec<_> = after.contents().iter().map(|object| object.key().unwrap()).collect();
    assert_eq!(after, ["tree/b/2", "tree/c/1/x", "tree/d"]);
    let old = store
        .s3
        .list_objects()
        .bucket(&store.bucket)
        .prefix("tree/")
        .delimiter("/")
        .marker("tree/b/")
        .send()
        .await
        .unwrap();
    let old: Vec<_> = old.contents().iter().map(|object| object.key().unwrap()).collect();
    assert_eq!(old.last(), Some(&"tree/d"));
}

async fn removing_a_folder_leaves_its_neighbours(store: &Store) {
    for key in ["gone/1", "gone/2/3", "gone-not", "gone"] {
        store.objects.put_bytes(&store.at(key), "x", &Put::default()).await.unwrap();
    }
    assert_eq!(store.objects.delete_prefix(&store.at("gone").folder()).await.unwrap(), 2);
    let left: Vec<_> = store.objects.list(&store.at("gone")).all().await.unwrap();
    assert_eq!(left.iter().map(|object| object.uri.key()).collect::<Vec<_>>(), ["gone", "gone-not"]);
    assert!(store.objects.delete_prefix(&store.at("")).await.is_err(), "a whole bucket is never emptied");
}

async fn a_bucket_is_ensured_twice(store: &Store) {
    store.objects.ensure_bucket(&store.bucket).await.unwrap();
    store.objects.ensure_bucket(&store.bucket).await.unwrap();
}

async fn probes_speak_bedrocks_words(store: &Store) {
    let there = store.at("probed/input.jsonl");
    store.objects.put_bytes(&there, "x", &Put::default()).await.unwrap();
    assert_eq!(store.objects.probe_read(&there).await.unwrap().size, 1);
    let error = store.objects.probe_read(&store.at("probed/missing.jsonl")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Validation);
    assert_eq!(
        error.message(),
        format!(
            "Could not validate GetObject permissions to access Amazon S3 bucket: {} at key probed/missing.jsonl",
            store.bucket
        )
    );
    store.objects.probe_write(&store.at("probed/output"), &Put::default()).await.unwrap();
    assert!(store.objects.list(&store.at("probed/output")).all().await.unwrap().is_empty(), "the probe cleans up");
    let error = store
        .objects
        .probe_write(&Uri::new("no-bucket-of-this-name-anywhere", "output/"), &Put::default())
        .await
        .unwrap_err();
    assert_eq!(
        error.message(),
        "Could not validate PutObject permissions to access S3 bucket: no-bucket-of-this-name-anywhere at key \
         output/.write_access_check_file.tmp"
    );
}

async fn odd_keys_are_only_keys(store: &Store) {
    let long = "k".repeat(1024);
    let keys = [
        "odd/..",
        "odd/../../../etc/passwd",
        "odd/a//b",
        "odd/ space+plus%2e",
        "odd/ключ/鍵/🔑",
        "odd/a?b#c&d=e",
        &long,
    ];
    for key in keys {
        store.objects.put_bytes(&store.at(key), key.to_string(), &Put::default()).await.unwrap();
    }
    for key in keys {
        assert_eq!(store.objects.get_bytes(&store.at(key), 2000).await.unwrap(), key);
    }
    let found = store.objects.list(&store.at("odd/")).all().await.unwrap();
    let mut expected = keys[..6].to_vec();
    expected.sort();
    assert_eq!(found.iter().map(|object| object.uri.key()).collect::<Vec<_>>(), expected);
}

async fn ranges_and_conditions_hold(store: &Store) {
    store.objects.put_bytes(&store.at("ranged"), "0123456789", &Put::default()).await.unwrap();
    let get = || store.s3.get_object().bucket(&store.bucket).key("ranged");
    for (range, part) in
        [("bytes=0-0", "0"), ("bytes=2-5", "2345"), ("bytes=7-", "789"), ("bytes=-3", "789"), ("bytes=5-99", "56789")]
    {
        let got = get().range(range).send().await.unwrap();
        let content_range = got.content_range().unwrap().to_string();
        let bytes = got.body.collect().await.unwrap().into_bytes();
        assert_eq!(bytes, part, "{range}");
        assert!(content_range.starts_with("bytes ") && content_range.ends_with("/10"), "{content_range}");
    }
    let status = |error: aws_sdk_s3::error::SdkError<_>| error.raw_response().unwrap().status().as_u16();
    assert_eq!(status(get().range("bytes=10-").send().await.unwrap_err()), 416);
    let etag = store.objects.head(&store.at("ranged")).await.unwrap().etag;
    let quoted = format!("\"{etag}\"");
    get().if_match(&quoted).send().await.unwrap();
    assert_eq!(status(get().if_match("\"other\"").send().await.unwrap_err()), 412);
    assert_eq!(status(get().if_none_match(&quoted).send().await.unwrap_err()), 304);
    get().if_none_match("\"other\"").send().await.unwrap();
    let put = store
        .s3
        .put_object()
        .bucket(&store.bucket)
        .key("ranged")
        .if_none_match("*")
        .body(ByteStream::from_static(b"x"));
    assert_eq!(put.send().await.unwrap_err().raw_response().unwrap().status().as_u16(), 412);
    assert_eq!(store.objects.get_bytes(&store.at("ranged"), 99).await.unwrap(), "0123456789", "it is untouched");
}

async fn descriptions_come_back(store: &Store) {
    store
        .s3
        .put_object()
        .bucket(&store.bucket)
        .key("described")
        .body(ByteStream::from_static(b"x"))
        .content_type("text/csv")
        .content_disposition("attachment")
        .cache_control("no-store")
        .content_language("de")
        .metadata("job", "abc")
        .metadata("step", "7")
        .send()
        .await
        .unwrap();
    let head = store.s3.head_object().bucket(&store.bucket).key("described").send().await.unwrap();
    assert_eq!(head.content_type(), Some("text/csv"));
    assert_eq!(head.content_disposition(), Some("attachment"));
    assert_eq!(head.cache_control(), Some("no-store"));
    assert_eq!(head.content_language(), Some("de"));
    let metadata: BTreeMap<_, _> = head.metadata().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(metadata, BTreeMap::from([("job", "abc"), ("step", "7")]));
}

async fn copies_are_equal(store: &Store) {
    store.objects.put_bytes(&store.at("copies/from é"), "copied", &Put::default()).await.unwrap();
    let from = format!("{}/copies/from%20%C3%A9", store.bucket);
    let copied = store.s3.copy_object().bucket(&store.bucket).key("copies/to").copy_source(from).send().await.unwrap();
    assert_eq!(copied.copy_object_result().unwrap().e_tag().unwrap().trim_matches('"'), md5(b"copied"));
    assert_eq!(store.objects.get_bytes(&store.at("copies/to"), 99).await.unwrap(), "copied");
}

async fn parts_are_put_together(store: &Store) {
    let (s3, bucket, key) = (&store.s3, &store.bucket, "parts");
    let upload = s3.create_multipart_upload().bucket(bucket).key(key).send().await.unwrap();
    let id = upload.upload_id().unwrap();
    let bodies = [vec![1_u8; 5 << 20], vec![2_u8; 5 << 20], vec![3_u8; 10]];
    let mut parts = Vec::new();
    // Out of order, and the second one twice: the later one counts.
    for (number, body) in [(3, &bodies[2]), (2, &bodies[2]), (1, &bodies[0]), (2, &bodies[1])] {
        let body = ByteStream::from(body.clone());
        let sent =
            s3.upload_part().bucket(bucket).key(key).upload_id(id).part_number(number).body(body).send().await.unwrap();
        parts.retain(|part: &CompletedPart| part.part_number() != Some(number));
        parts.push(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build());
    }
    assert_eq!(
        store.objects.head(&store.at(key)).await.unwrap_err().kind(),
        Kind::NotFound,
        "not visible before its end"
    );

    let complete = |parts: Vec<CompletedPart>| {
        let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        s3.complete_multipart_upload().bucket(bucket).key(key).upload_id(id).multipart_upload(upload).send()
    };
    let wrong = CompletedPart::builder().part_number(1).e_tag("\"00000000000000000000000000000000\"").build();
    assert_eq!(complete(vec![wrong]).await.unwrap_err().raw_response().unwrap().status().as_u16(), 400);
    parts.sort_by_key(CompletedPart::part_number);
    if let Err(error) = complete(parts).await {
        // moto's answer has a root element that the SDK cannot read; the object tells how it went.
        assert!(error.raw_response().unwrap().status().is_success(), "{error:?}");
    }
    let digests: Vec<u8> = bodies.iter().flat_map(|body| md5_bytes(body)).collect();
    assert_eq!(store.objects.head(&store.at(key)).await.unwrap().etag, format!("{}-3", md5(&digests)));
    let got = store.objects.get_bytes(&store.at(key), 1 << 30).await.unwrap();
    assert!(got == bodies.concat(), "the parts lie in the order of their numbers");
    // A range over the seam of two parts.
    let seam = s3
        .get_object()
        .bucket(bucket)
        .key(key)
        .range(format!("bytes={}-{}", (5 << 20) - 2, (5 << 20) + 1))
        .send()
        .await
        .unwrap();
    assert_eq!(seam.body.collect().await.unwrap().into_bytes(), [1, 1, 2, 2].as_slice());
}

/// Not asked of moto, whose listings of parts have a root element that the SDK refuses.
async fn parts_are_listed_and_given_up(store: &Store) {
    let (s3, bucket, key) = (&store.s3, &store.bucket, "given up");
    let upload = s3.create_multipart_upload().bucket(bucket).key(key).send().await.unwrap();
    let id = upload.upload_id().unwrap();
    for (number, text) in [(2, "second"), (1, "first"), (2, "again")] {
        let body = ByteStream::from_static(text.as_bytes());
        s3.upload_part().bucket(bucket).key(key).upload_id(id).part_number(number).body(body).send().await.unwrap();
    }
    let list = || s3.list_parts().bucket(bucket).key(key).upload_id(id);
    let numbers_and_sizes = |parts: &[aws_sdk_s3::types::Part]| -> Vec<(i32, i64)> {
        parts.iter().map(|part| (part.part_number().unwrap(), part.size().unwrap())).collect()
    };
    assert_eq!(numbers_and_sizes(list().send().await.unwrap().parts()), [(1, 5), (2, 5)]);
    let second = list().part_number_marker("1").send().await.unwrap();
    assert_eq!(numbers_and_sizes(second.parts()), [(2, 5)]);
    let uploads = s3.list_multipart_uploads().bucket(bucket).send().await.unwrap();
    assert!(uploads.uploads().iter().any(|upload| upload.upload_id() == Some(id) && upload.key() == Some(key)));
    s3.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send().await.unwrap();
    assert_eq!(list().send().await.unwrap_err().raw_response().unwrap().status().as_u16(), 404);
    let uploads = s3.list_multipart_uploads().bucket(bucket).send().await.unwrap();
    assert!(uploads.uploads().iter().all(|upload| upload.upload_id() != Some(id)));
}

async fn many_keys_are_deleted_at_once(store: &Store) {
    for key in ["bulk/1", "bulk/2", "bulk/3"] {
        store.objects.put_bytes(&store.at(key), "x", &Put::default()).await.unwrap();
    }
    let named = |key: &str| ObjectIdentifier::builder().key(key).build().unwrap();
    let delete = Delete::builder()
        .objects(named("bulk/1"))
        .objects(named("bulk/3"))
        .objects(named("bulk/none"))
        .build()
        .unwrap();
    store.s3.delete_objects().bucket(&store.bucket).delete(delete).send().await.unwrap();
    let left = store.objects.list(&store.at("bulk/")).all().await.unwrap();
    assert_eq!(left.iter().map(|object| object.uri.key()).collect::<Vec<_>>(), ["bulk/2"]);
}

pub(super) fn md5(bytes: &[u8]) -> String {
    hex::encode(md5_bytes(bytes))
}

fn md5_bytes(bytes: &[u8]) -> Vec<u8> {
    use md5::Digest as _;
    md5::Md5::digest(bytes).to_vec()
}
