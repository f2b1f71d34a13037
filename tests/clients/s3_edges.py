"""The edges of S3, by an unmodified boto3 and by plain requests, against the embedded S3 server.

    python3 s3_edges.py PART PORT ACCESS_KEY SECRET_KEY ACCOUNT

Every part runs against an empty server. Ends at the first check that fails.
"""

import base64
import functools
import hashlib
import http.client
import socket
import sys
import time
import urllib.parse
import zlib

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

PART, PORT, ACCESS_KEY, SECRET_KEY, ACCOUNT = sys.argv[1:6]
MIB = 1 << 20

# Names of hosts that the server is known by.
resolve = socket.getaddrinfo
SERVER = ("localhost", "example.com", "example.org")
socket.getaddrinfo = lambda host, *rest, **named: resolve(
    "127.0.0.1" if str(host).endswith(SERVER) else host, *rest, **named
)


def client(host="127.0.0.1", style="path", **settings):
    settings.setdefault("signature_version", "s3v4")
    return boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{PORT}",
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": style}, retries={"max_attempts": 1}, **settings),
    )


s3 = client()


def refused(code, call, status=None, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        found = error.response["Error"]["Code"]
        assert found == code, f"{found} instead of {code}: {error}"
        told = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert status is None or told == status, f"{told} instead of {status}: {error}"
        return error.response["Error"].get("Message", "")
    raise AssertionError(f"{code} was expected of {arguments}")


def send(method, link, body=None, headers=()):
    """A plain request: status, headers, body."""
    parts = urllib.parse.urlsplit(link)
    connection = http.client.HTTPConnection("127.0.0.1", int(PORT), timeout=30)
    target = parts.path + ("?" + parts.query if parts.query else "")
    connection.request(method, target, body=body, headers={"Host": parts.netloc, **dict(headers)})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def read(store, bucket, key):
    return store.get_object(Bucket=bucket, Key=key)["Body"].read()


def hosts():
    for bucket in ("tuning", "tickets", "my.dotted.bucket"):
        s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket="tickets", Key="train.jsonl", Body=b"precious")
    for host in ("localhost", "s3.example.com"):
        hosted = client(host, "virtual")
        hosted.put_object(Bucket="tuning", Key="tickets/train.jsonl", Body=host.encode())
        assert read(s3, "tuning", "tickets/train.jsonl") == host.encode()
        assert read(hosted, "tuning", "tickets/train.jsonl") == host.encode()
        assert read(s3, "tickets", "train.jsonl") == b"precious"
        assert [o["Key"] for o in hosted.list_objects_v2(Bucket="tuning")["Contents"]] == ["tickets/train.jsonl"]
        for key in ("//", "a//b", "a b+c%d/ключ", "..", "tuning/tuning"):
            hosted.put_object(Bucket="tuning", Key=key, Body=key.encode())
            assert read(s3, "tuning", key) == key.encode(), key
            hosted.delete_object(Bucket="tuning", Key=key)
        hosted.copy_object(Bucket="tuning", Key="copy", CopySource={"Bucket": "tickets", "Key": "train.jsonl"})
        assert read(s3, "tuning", "copy") == b"precious"
        which = {"Bucket": "tuning", "Key": "parts"}
        which["UploadId"] = hosted.create_multipart_upload(**which)["UploadId"]
        etag = hosted.upload_part(**which, PartNumber=1, Body=b"part")["ETag"]
        hosted.complete_multipart_upload(**which, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
        assert read(s3, "tuning", "parts") == b"part"
        hosted.create_bucket(Bucket="by-host")
        assert s3.head_bucket(Bucket="by-host")
        hosted.delete_bucket(Bucket="by-host")
        refused("NoSuchBucket", hosted.list_objects_v2, Bucket="by-host")
        assert read(client(host, "path"), "tickets", "train.jsonl") == b"precious", "the path is read as well"
        link = hosted.generate_presigned_url("get_object", {"Bucket": "tuning", "Key": "tickets/train.jsonl"})
        assert urllib.parse.urlsplit(link).netloc == f"tuning.{host}:{PORT}", link
        assert send("GET", link)[2] == host.encode()
        # The host is signed: the link opens nothing in another bucket.
        assert send("GET", link.replace("//tuning.", "//tickets."))[0] == 403
        for object in s3.list_objects_v2(Bucket="tuning")["Contents"]:
            s3.delete_object(Bucket="tuning", Key=object["Key"])
    dotted = client("localhost", "virtual")
    dotted.put_object(Bucket="my.dotted.bucket", Key="x", Body=b"dots")
    assert read(s3, "my.dotted.bucket", "x") == b"dots"
    # A host that may be a bucket's or the server's: refused, and nothing is written.
    for host in ("s3.example.org", "example.com"):
        for style in ("virtual", "path"):
            unknown = client(host, style)
            told = refused("InvalidHostHeader", unknown.put_object, 400, Bucket="tuning", Key="tickets/train.jsonl", Body=b"x")
            assert "TUNESMITH_S3_DOMAIN" in told, told
    assert read(s3, "tickets", "train.jsonl") == b"precious"
    assert "Contents" not in s3.list_objects_v2(Bucket="tuning")


def links():
    s3.create_bucket(Bucket="tuning")
    s3.put_object(Bucket="tuning", Key="a b/c.csv", Body=b"linked", ContentType="text/csv")
    for maker in (client(signature_version="s3"), client("localhost", "virtual", signature_version="s3")):
        key = {"Bucket": "tuning", "Key": "a b/c.csv"}
        link = maker.generate_presigned_url("get_object", key, ExpiresIn=60)
        assert "AWSAccessKeyId=" in link and "X-Amz" not in link, link
        assert send("GET", link)[::2] == (200, b"linked"), send("GET", link)
        assert send("HEAD", maker.generate_presigned_url("head_object", key))[0] == 200
        put = maker.generate_presigned_url("put_object", {"Bucket": "tuning", "Key": "put"})
        assert send("PUT", put, b"by link")[0] == 200
        assert read(s3, "tuning", "put") == b"by link"
        named = {**key, "ResponseContentDisposition": 'attachment; filename="x y.csv"'}
        answer = send("GET", maker.generate_presigned_url("get_object", named))
        assert answer[1]["Content-Disposition"] == 'attachment; filename="x y.csv"', answer[1]
        assert send("GET", maker.generate_presigned_url("list_objects_v2", {"Bucket": "tuning"}))[0] == 200
        for wrong in (
            link.replace("a%20b", "put").replace("/c.csv", ""),
            link.replace("Signature=", "Signature=A"),
            link.replace(ACCESS_KEY, "AKIDNOBODY"),
            maker.generate_presigned_url("get_object", key, ExpiresIn=-1),
            link + "&acl",
            link.replace("//tuning.", "//other."),
        ):
            if wrong != link:
                assert send("GET", wrong)[0] == 403, wrong
        assert send("PUT", link, b"x")[0] == 403
        far = maker.generate_presigned_url("get_object", key, ExpiresIn=604801 + 60)
        status, _, body = send("GET", far)
        assert status == 400 and b"AuthorizationQueryParametersError" in body, body
        copying = [("x-amz-copy-source", "/tuning/a%20b/c.csv")]
        assert send("PUT", put, b"", copying)[0] == 403, "a link to write is none to copy"
    modern = client().generate_presigned_url("put_object", {"Bucket": "tuning", "Key": "put"})
    assert send("PUT", modern, b"", [("x-amz-copy-source", "/tuning/a%20b/c.csv")])[0] == 403
    assert read(s3, "tuning", "put") == b"by link"
    assert send("PUT", modern, b"modern")[0] == 200
    assert send("GET", modern.split("?")[0] + "?AWSAccessKeyId=a&Signature=b&Expires=c")[0] == 403
    refused("InvalidRequest", client(signature_version="s3").list_buckets)


def unused():
    s3.create_bucket(Bucket="tuning")
    s3.put_object(Bucket="tuning", Key="x", Body=b"x")
    ask = {"Bucket": "tuning"}
    without = lambda answer: {name: value for name, value in answer.items() if name != "ResponseMetadata"}
    assert without(s3.get_bucket_versioning(**ask)) == {}
    assert without(s3.get_bucket_location(**ask)) == {"LocationConstraint": None}
    assert without(s3.get_bucket_logging(**ask)) == {}
    assert without(s3.get_bucket_notification_configuration(**ask)) == {}
    assert without(s3.get_bucket_accelerate_configuration(**ask)) == {}
    assert s3.get_bucket_request_payment(**ask)["Payer"] == "BucketOwner"
    ownership = s3.get_bucket_ownership_controls(**ask)["OwnershipControls"]["Rules"]
    assert ownership == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert all(s3.get_public_access_block(**ask)["PublicAccessBlockConfiguration"].values())
    for acl in (s3.get_bucket_acl(**ask), s3.get_object_acl(**ask, Key="x")):
        assert acl["Owner"]["ID"] == ACCOUNT
        (grant,) = acl["Grants"]
        assert grant["Permission"] == "FULL_CONTROL" and grant["Grantee"]["ID"] == ACCOUNT
        assert grant["Grantee"]["Type"] == "CanonicalUser"
    assert s3.get_object_tagging(**ask, Key="x")["TagSet"] == []
    for code, call in (
        ("NoSuchBucketPolicy", s3.get_bucket_policy),
        ("NoSuchBucketPolicy", s3.get_bucket_policy_status),
        ("NoSuchCORSConfiguration", s3.get_bucket_cors),
        ("NoSuchLifecycleConfiguration", s3.get_bucket_lifecycle_configuration),
        ("NoSuchTagSet", s3.get_bucket_tagging),
        ("ServerSideEncryptionConfigurationNotFoundError", s3.get_bucket_encryption),
        ("NoSuchWebsiteConfiguration", s3.get_bucket_website),
        ("ReplicationConfigurationNotFoundError", s3.get_bucket_replication),
        ("ObjectLockConfigurationNotFoundError", s3.get_object_lock_configuration),
    ):
        refused(code, call, 404, **ask)
    for call in (
        s3.get_bucket_versioning,
        s3.get_bucket_acl,
        s3.get_bucket_policy,
        s3.get_bucket_tagging,
        s3.get_bucket_cors,
        s3.get_public_access_block,
        s3.list_object_versions,
    ):
        refused("NoSuchBucket", call, 404, Bucket="nothing-here")
    refused("NoSuchKey", s3.get_object_acl, 404, **ask, Key="nothing")
    refused("NoSuchKey", s3.get_object_attributes, 404, **ask, Key="nothing", ObjectAttributes=["ETag"])
    on = {"Status": "Enabled"}
    for call, named in (
        (s3.put_bucket_versioning, {"VersioningConfiguration": on}),
        (s3.put_bucket_policy, {"Policy": "{}"}),
        (s3.put_bucket_acl, {"ACL": "public-read"}),
        (s3.put_bucket_request_payment, {"RequestPaymentConfiguration": {"Payer": "Requester"}}),
        (s3.put_bucket_accelerate_configuration, {"AccelerateConfiguration": on}),
        (s3.put_object_acl, {"Key": "x", "ACL": "public-read"}),
        (s3.put_object_legal_hold, {"Key": "x", "LegalHold": {"Status": "ON"}}),
    ):
        told = refused("NotImplemented", call, 501, **ask, **named)
        assert told, "the feature is named"
    refused("InvalidStorageClass", s3.put_object, **ask, Key="x", Body=b"x", StorageClass="GLACIER")
    refused("NotImplemented", s3.put_object, **ask, Key="x", Body=b"x", GrantRead="id=1")
    # A condition that is not known must not be taken for one that holds.
    refused("NotImplemented", s3.delete_object, **ask, Key="x", IfMatchSize=7)
    conditional = {"Objects": [{"Key": "x", "Size": 7}]}
    refused("NotImplemented", s3.delete_objects, **ask, Delete=conditional)
    assert s3.head_object(**ask, Key="x")["ContentLength"] == 1
    versions()


def versions():
    keys = sorted(f"v/{folder}/{number}" for folder in "ab" for number in range(4))
    for key in keys:
        s3.put_object(Bucket="tuning", Key=key, Body=b"x")
    for size in (1, 3, 1000):
        pages = s3.get_paginator("list_object_versions").paginate(
            Bucket="tuning", Prefix="v/", PaginationConfig={"PageSize": size}
        )
        found = [version for page in pages for version in page.get("Versions", [])]
        assert [version["Key"] for version in found] == keys, (size, found)
        assert all(version["VersionId"] == "null" and version["IsLatest"] for version in found)
    rolled = s3.list_object_versions(Bucket="tuning", Prefix="v/", Delimiter="/")
    assert [prefix["Prefix"] for prefix in rolled["CommonPrefixes"]] == ["v/a/", "v/b/"]
    assert s3.get_object(Bucket="tuning", Key=keys[0], VersionId="null")["Body"].read() == b"x"
    refused("NoSuchVersion", s3.get_object, Bucket="tuning", Key=keys[0], VersionId="other")
    attributes = s3.get_object_attributes(
        Bucket="tuning", Key=keys[0], ObjectAttributes=["ETag", "ObjectSize", "StorageClass", "Checksum", "ObjectParts"]
    )
    assert attributes["ETag"].strip('"') == hashlib.md5(b"x").hexdigest(), attributes
    assert attributes["ObjectSize"] == 1 and attributes["StorageClass"] == "STANDARD"
    assert "ObjectParts" not in attributes
    # What empties a bucket with versions also empties this one.
    listed = s3.list_object_versions(Bucket="tuning")["Versions"]
    objects = [{"Key": version["Key"], "VersionId": version["VersionId"]} for version in listed]
    assert len(s3.delete_objects(Bucket="tuning", Delete={"Objects": objects})["Deleted"]) == len(objects)
    s3.delete_bucket(Bucket="tuning")


def owners():
    s3.create_bucket(Bucket="tuning", CreateBucketConfiguration={"LocationConstraint": "us-east-1"})
    s3.put_object(Bucket="tuning", Key="x", Body=b"kept", ExpectedBucketOwner=ACCOUNT)
    other = {"Bucket": "tuning", "ExpectedBucketOwner": "999999999999"}
    source = {"CopySource": {"Bucket": "tuning", "Key": "x"}}
    upload = s3.create_multipart_upload(Bucket="tuning", Key="parts")["UploadId"]
    for call, named in (
        (s3.put_object, {"Key": "x", "Body": b"lost"}),
        (s3.get_object, {"Key": "x"}),
        (s3.delete_object, {"Key": "x"}),
        (s3.delete_objects, {"Delete": {"Objects": [{"Key": "x"}]}}),
        (s3.list_objects_v2, {}),
        (s3.list_objects, {}),
        (s3.list_object_versions, {}),
        (s3.delete_bucket, {}),
        (s3.get_bucket_versioning, {}),
        (s3.get_bucket_cors, {}),
        (s3.put_bucket_tagging, {"Tagging": {"TagSet": []}}),
        (s3.get_object_tagging, {"Key": "x"}),
        (s3.copy_object, {"Key": "y", **source}),
        (s3.create_multipart_upload, {"Key": "x"}),
        (s3.upload_part, {"Key": "parts", "UploadId": upload, "PartNumber": 1, "Body": b"x"}),
        (s3.list_parts, {"Key": "parts", "UploadId": upload}),
        (s3.abort_multipart_upload, {"Key": "parts", "UploadId": upload}),
    ):
        refused("AccessDenied", call, 403, **other, **named)
    refused("403", s3.head_object, 403, **other, Key="x")
    refused("403", s3.head_bucket, 403, **other)
    wrong_source = {"ExpectedSourceBucketOwner": "999999999999"}
    refused("AccessDenied", s3.copy_object, 403, Bucket="tuning", Key="y", **source, **wrong_source)
    which = {"Bucket": "tuning", "Key": "parts", "UploadId": upload, "PartNumber": 1}
    refused("AccessDenied", s3.upload_part_copy, 403, **which, **source, **wrong_source)
    link = s3.generate_presigned_url("get_object", {**other, "Key": "x"})
    owner = [("x-amz-expected-bucket-owner", "999999999999")]
    assert send("GET", link, headers=owner)[0] == 403
    s3.copy_object(Bucket="tuning", Key="y", **source, ExpectedBucketOwner=ACCOUNT, ExpectedSourceBucketOwner=ACCOUNT)
    assert read(s3, "tuning", "x") == b"kept" and read(s3, "tuning", "y") == b"kept"
    refused("NoSuchBucket", s3.list_objects_v2, Bucket="nothing-here", ExpectedBucketOwner="999999999999")

    elsewhere = {"Bucket": "elsewhere", "CreateBucketConfiguration": {"LocationConstraint": "eu-central-1"}}
    refused("IllegalLocationConstraintException", s3.create_bucket, 400, **elsewhere)
    elsewhere["CreateBucketConfiguration"] = {"LocationConstraint": "nowhere"}
    refused("InvalidLocationConstraint", s3.create_bucket, 400, **elsewhere)
    refused("NotImplemented", s3.create_bucket, Bucket="elsewhere", ACL="public-read")
    refused("NotImplemented", s3.create_bucket, Bucket="elsewhere", ObjectLockEnabledForBucket=True)
    refused("NotImplemented", s3.create_bucket, Bucket="elsewhere", ObjectOwnership="ObjectWriter")
    refused("404", s3.head_bucket, Bucket="elsewhere")


def cors():
    s3.create_bucket(Bucket="tuning")
    s3.put_object(Bucket="tuning", Key="x", Body=b"x")
    page = "https://console.example.net"
    ask = {"Origin": page, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type, X-Amz-Date"}
    target = f"http://127.0.0.1:{PORT}/tuning/x"
    status, _, body = send("OPTIONS", target, headers=ask.items())
    assert status == 403 and b"CORS is not enabled" in body, body
    rules = [
        {"ID": "console", "AllowedOrigins": ["https://*.example.net"], "AllowedMethods": ["PUT", "GET"], "AllowedHeaders": ["*"],
         "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 60},
        {"AllowedOrigins": ["*"], "AllowedMethods": ["HEAD"]},
    ]
    s3.put_bucket_cors(Bucket="tuning", CORSConfiguration={"CORSRules": rules})
    assert s3.get_bucket_cors(Bucket="tuning")["CORSRules"] == rules
    hosted = f"http://tuning.localhost:{PORT}/x"
    for target in (target, hosted):
        status, headers, _ = send("OPTIONS", target, headers=ask.items())
        assert status == 200, (target, status)
        assert headers["Access-Control-Allow-Origin"] == page
        assert "PUT" in headers["Access-Control-Allow-Methods"]
        assert headers["Access-Control-Allow-Headers"] == "content-type, x-amz-date"
        assert headers["Access-Control-Max-Age"] == "60" and headers["Access-Control-Expose-Headers"] == "ETag"
        assert headers["Access-Control-Allow-Credentials"] == "true" and "Origin" in headers["Vary"]
    for wrong in (
        {**ask, "Origin": "https://elsewhere.example.org"},
        {**ask, "Access-Control-Request-Method": "DELETE"},
        {"Origin": page, "Access-Control-Request-Method": "HEAD", "Access-Control-Request-Headers": "x-y"},
    ):
        status, headers, body = send("OPTIONS", target, headers=wrong.items())
        assert status == 403 and b"AccessForbidden" in body, body
        assert "Access-Control-Allow-Origin" not in headers
    for insufficient in ({}, {"Origin": page}, {"Access-Control-Request-Method": "GET"}):
        assert send("OPTIONS", target, headers=insufficient.items())[0] == 400
    anyone = {"Origin": "https://elsewhere.example.org", "Access-Control-Request-Method": "HEAD"}
    headers = send("OPTIONS", target, headers=anyone.items())[1]
    assert headers["Access-Control-Allow-Origin"] == "*" and "Access-Control-Allow-Credentials" not in headers
    link = s3.generate_presigned_url("get_object", {"Bucket": "tuning", "Key": "x"})
    status, headers, body = send("GET", link, headers=[("Origin", page)])
    assert (status, body, headers["Access-Control-Allow-Origin"]) == (200, b"x", page)
    assert headers["Access-Control-Expose-Headers"] == "ETag"
    assert "Access-Control-Allow-Origin" not in send("GET", link, headers=[("Origin", "https://elsewhere.example.org")])[1]
    assert "Access-Control-Allow-Origin" not in send("GET", link)[1]
    # A page is told why it was refused.
    assert send("GET", link.replace("Signature=", "Signature=0"), headers=[("Origin", page)])[1]["Access-Control-Allow-Origin"] == page
    for wrong in (
        [{"AllowedOrigins": ["*"], "AllowedMethods": ["PATCH"]}],
        [{"AllowedOrigins": ["https://*.*"], "AllowedMethods": ["GET"]}],
        [{"AllowedOrigins": ["*"], "AllowedMethods": ["GET"], "ExposeHeaders": ["x-*"]}],
    ):
        refused("InvalidRequest", s3.put_bucket_cors, Bucket="tuning", CORSConfiguration={"CORSRules": wrong})
    assert s3.get_bucket_cors(Bucket="tuning")["CORSRules"] == rules
    s3.delete_bucket_cors(Bucket="tuning")
    refused("NoSuchCORSConfiguration", s3.get_bucket_cors, Bucket="tuning")
    assert send("OPTIONS", target, headers=ask.items())[0] == 403
    s3.delete_object(Bucket="tuning", Key="x")
    s3.put_bucket_cors(Bucket="tuning", CORSConfiguration={"CORSRules": rules})
    s3.delete_bucket(Bucket="tuning")
    s3.create_bucket(Bucket="tuning")
    refused("NoSuchCORSConfiguration", s3.get_bucket_cors, Bucket="tuning")


def tags():
    s3.create_bucket(Bucket="tuning")
    where = {"Bucket": "tuning", "Key": "x"}
    pair = lambda key, value: {"Key": key, "Value": value}
    of = lambda key="x": s3.get_object_tagging(Bucket="tuning", Key=key)["TagSet"]
    s3.put_object(**where, Body=b"x", Tagging="team=a%20b&cost=1", Metadata={"kept": "yes"})
    assert of() == [pair("team", "a b"), pair("cost", "1")]
    assert s3.get_object(**where)["TagCount"] == s3.head_object(**where)["TagCount"] == 2
    etag = s3.head_object(**where)["ETag"]
    s3.put_object_tagging(**where, Tagging={"TagSet": [pair("stage", "raw/1")]})
    assert of() == [pair("stage", "raw/1")]
    head = s3.head_object(**where)
    assert (head["ETag"], head["Metadata"]) == (etag, {"kept": "yes"}), "nothing else changed"
    s3.copy_object(Bucket="tuning", Key="copy", CopySource=where)
    assert of("copy") == [pair("stage", "raw/1")]
    s3.copy_object(Bucket="tuning", Key="copy", CopySource=where, TaggingDirective="REPLACE", Tagging="new=1")
    assert of("copy") == [pair("new", "1")] and s3.head_object(Bucket="tuning", Key="copy")["Metadata"] == {"kept": "yes"}
    refused("InvalidRequest", s3.copy_object, Bucket="tuning", Key="copy", CopySource=where, Tagging="new=1")
    parts = {"Bucket": "tuning", "Key": "parts"}
    parts["UploadId"] = s3.create_multipart_upload(**parts, Tagging="in=parts")["UploadId"]
    etag = s3.upload_part(**parts, PartNumber=1, Body=b"x")["ETag"]
    s3.complete_multipart_upload(**parts, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    assert of("parts") == [pair("in", "parts")]
    s3.delete_object_tagging(**where)
    assert of() == [] and "TagCount" not in s3.get_object(**where)
    many = [pair(f"k{n}", "v") for n in range(11)]
    for code, wrong in (
        ("BadRequest", many),
        ("InvalidTag", [pair("a", "1"), pair("a", "2")]),
        ("InvalidTag", [pair("k" * 129, "v")]),
        ("InvalidTag", [pair("k", "v" * 257)]),
        ("InvalidTag", [pair("aws:k", "v")]),
    ):
        refused(code, s3.put_object_tagging, 400, **where, Tagging={"TagSet": wrong})
        s3.put_object(**where, Body=b"before")
        if code != "InvalidTag" or len(wrong) == 1:
            header = urllib.parse.urlencode([(tag["Key"], tag["Value"]) for tag in wrong])
            refused(code, s3.put_object, 400, **where, Body=b"after", Tagging=header)
        assert read(s3, "tuning", "x") == b"before"
    refused("NoSuchKey", s3.put_object_tagging, 404, Bucket="tuning", Key="nothing", Tagging={"TagSet": []})
    refused("NoSuchTagSet", s3.get_bucket_tagging, 404, Bucket="tuning")
    s3.put_bucket_tagging(Bucket="tuning", Tagging={"TagSet": many})
    assert s3.get_bucket_tagging(Bucket="tuning")["TagSet"] == many
    s3.delete_bucket_tagging(Bucket="tuning")
    refused("NoSuchTagSet", s3.get_bucket_tagging, 404, Bucket="tuning")


def crc32(data):
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def table(polynomial):
    entries = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ polynomial if value & 1 else value >> 1
        entries.append(value)
    return entries


def reflected(polynomial, width):
    entries = table(polynomial)

    def checksum(data):
        value = (1 << width) - 1
        for byte in data:
            value = value >> 8 ^ entries[(value ^ byte) & 255]
        return base64.b64encode((value ^ (1 << width) - 1).to_bytes(width // 8, "big")).decode()

    return checksum


WHOLE = {
    "CRC32": crc32,
    "CRC32C": functools.cache(reflected(0x82F63B78, 32)),
    "CRC64NVME": functools.cache(reflected(0x9A6C9329AC4BC9B5, 64)),
}


def checksums():
    assert WHOLE["CRC32C"](b"123456789") == base64.b64encode(bytes.fromhex("e3069283")).decode()
    assert WHOLE["CRC64NVME"](b"123456789") == base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
    s3.create_bucket(Bucket="tuning")
    first, last = bytes(range(256)) * (5 * MIB // 256), b"the last part"
    both = first + last
    # No checksum of botocore's own gets in the way.
    plain = client(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    for algorithm, whole in WHOLE.items():
        expected, field = whole(both), f"Checksum{algorithm}"
        for announced in (True, False):
            which = {"Bucket": "tuning", "Key": f"whole-{algorithm}-{announced}"}
            kind = {"ChecksumAlgorithm": algorithm, "ChecksumType": "FULL_OBJECT"}
            begun = plain.create_multipart_upload(**which, **kind)
            assert (begun["ChecksumAlgorithm"], begun["ChecksumType"]) == (algorithm, "FULL_OBJECT")
            which["UploadId"] = begun["UploadId"]
            parts = []
            for number, data in ((1, first), (2, last)):
                sum = {field: whole(data)} if announced else {}
                part = plain.upload_part(**which, PartNumber=number, Body=data, **sum)
                assert part[field] == whole(data), "the server computes it where the client does not"
                parts.append({"PartNumber": number, "ETag": part["ETag"], **sum})
            listed = plain.list_parts(**which)
            assert (listed["ChecksumAlgorithm"], listed["ChecksumType"]) == (algorithm, "FULL_OBJECT")
            done = {**which, "MultipartUpload": {"Parts": parts}, "ChecksumType": "FULL_OBJECT"}
            refused("BadDigest", plain.complete_multipart_upload, 400, **done, **{field: whole(b"other")})
            composite = {**done, "ChecksumType": "COMPOSITE"}
            refused("InvalidRequest", plain.complete_multipart_upload, 400, **composite)
            completed = plain.complete_multipart_upload(**done, **{field: expected})
            assert (completed[field], completed["ChecksumType"]) == (expected, "FULL_OBJECT")
            of = {"Bucket": "tuning", "Key": which["Key"]}
            for answer in (plain.head_object(**of, ChecksumMode="ENABLED"), plain.get_object(**of, ChecksumMode="ENABLED")):
                assert (answer[field], answer["ChecksumType"]) == (expected, "FULL_OBJECT")
            assert field not in plain.head_object(**of)
            ranged = plain.get_object(**of, ChecksumMode="ENABLED", Range="bytes=1-5")
            assert field not in ranged and ranged["Body"].read() == both[1:6]
            part = plain.get_object(**of, ChecksumMode="ENABLED", PartNumber=2)
            assert part[field] == whole(last) and part["Body"].read() == last
            known = plain.get_object_attributes(**of, ObjectAttributes=["Checksum", "ObjectParts"])
            assert known["Checksum"] == {field: expected, "ChecksumType": "FULL_OBJECT"}
            assert known["ObjectParts"]["TotalPartsCount"] == 2
            assert [part[field] for part in known["ObjectParts"]["Parts"]] == [whole(first), whole(last)]
            copied = plain.copy_object(Bucket="tuning", Key="copy", CopySource=of)["CopyObjectResult"]
            assert copied[field] == expected
    digest = lambda data: hashlib.sha256(data).digest()
    text = lambda data: base64.b64encode(data).decode()
    which = {"Bucket": "tuning", "Key": "composite"}
    which["UploadId"] = plain.create_multipart_upload(**which, ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number, data in ((1, first), (2, last)):
        part = plain.upload_part(**which, PartNumber=number, Body=data, ChecksumSHA256=text(digest(data)))
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]})
    done = plain.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})
    assert done["ChecksumSHA256"] == text(digest(digest(first) + digest(last))) + "-2", done
    assert done["ChecksumType"] == "COMPOSITE"
    source = {"Bucket": "tuning", "Key": "composite"}
    copied = plain.copy_object(Bucket="tuning", Key="copy", CopySource=source)["CopyObjectResult"]
    assert copied["ChecksumSHA256"] == text(digest(both)), "a copy is one piece, and so is its checksum"
    for algorithm, kind in (("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE"), (None, "FULL_OBJECT")):
        named = {"ChecksumType": kind, **({"ChecksumAlgorithm": algorithm} if algorithm else {})}
        refused("InvalidRequest", plain.create_multipart_upload, 400, Bucket="tuning", Key="no", **named)
    # As boto3 does by default: a checksum behind the body.
    s3.put_object(Bucket="tuning", Key="trailing", Body=b"hello")
    answer = s3.get_object(Bucket="tuning", Key="trailing", ChecksumMode="ENABLED")
    assert (answer["ChecksumCRC32"], answer["ChecksumType"]) == (crc32(b"hello"), "FULL_OBJECT")


parts = {
    "hosts": hosts, "links": links, "unused": unused, "owners": owners, "cors": cors, "tags": tags, "checksums": checksums
}
begun = time.monotonic()
parts[PART]()
print(f"ok {PART} {time.monotonic() - begun:.1f} s")
