"""An unmodified boto3 against the embedded S3 server.

    python3 s3_embedded.py ENDPOINT ACCESS_KEY SECRET_KEY

Prints one line for each check and ends at the first that fails.
"""

import base64
import hashlib
import io
import os
import sys
import urllib.error
import urllib.request
import zlib

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT, ACCESS_KEY, SECRET_KEY = sys.argv[1:4]
BUCKET = "boto3-checks"
MIB = 1 << 20


def client(access_key=ACCESS_KEY, secret_key=SECRET_KEY, **settings):
    return boto3.client(
        "s3",
        endpoint_url=ENDPOINT,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, **settings),
    )


s3 = client(signature_version="s3v4")


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        found = error.response["Error"]["Code"]
        assert found == code, f"{found} instead of {code}: {error}"
        return error
    raise AssertionError(f"{code} was expected")


def buckets():
    s3.create_bucket(Bucket=BUCKET)
    assert BUCKET in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert s3.head_bucket(Bucket=BUCKET)["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] is None
    refused("BucketAlreadyOwnedByYou", s3.create_bucket, Bucket=BUCKET)
    s3.create_bucket(Bucket="boto3-emptied")
    s3.put_object(Bucket="boto3-emptied", Key="x", Body=b"x")
    refused("BucketNotEmpty", s3.delete_bucket, Bucket="boto3-emptied")
    s3.delete_object(Bucket="boto3-emptied", Key="x")
    s3.delete_bucket(Bucket="boto3-emptied")
    refused("NoSuchBucket", s3.list_objects_v2, Bucket="boto3-emptied")


def large_uploads_in_parts():
    data = os.urandom(21 * MIB + 7)
    for checksum in (None, "CRC32", "SHA256", "CRC64NVME"):
        if checksum == "CRC64NVME" and not has_crt():
            continue
        transfer = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)
        extra = {"ChecksumAlgorithm": checksum} if checksum else {}
        s3.upload_fileobj(io.BytesIO(data), BUCKET, "large", Config=transfer, ExtraArgs=extra)
        head = s3.head_object(Bucket=BUCKET, Key="large")
        assert head["ContentLength"] == len(data)
        parts = [data[at : at + 5 * MIB] for at in range(0, len(data), 5 * MIB)]
        whole = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
        assert head["ETag"] == f'"{whole}-{len(parts)}"', head["ETag"]
        out = io.BytesIO()
        s3.download_fileobj(BUCKET, "large", out, Config=transfer)
        assert out.getvalue() == data
    second = s3.get_object(Bucket=BUCKET, Key="large", PartNumber=2)
    assert second["PartsCount"] == len(parts) and second["Body"].read() == parts[1]


def has_crt():
    try:
        import awscrt  # noqa: F401
    except ImportError:
        return False
    return True


def small_parts_are_refused():
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="small-parts")["UploadId"]
    which = {"Bucket": BUCKET, "Key": "small-parts", "UploadId": upload}
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**which, PartNumber=number, Body=b"small")["ETag"]}
        for number in (1, 2)
    ]
    refused("EntityTooSmall", s3.complete_multipart_upload, **which, MultipartUpload={"Parts": parts})
    refused("InvalidPartOrder", s3.complete_multipart_upload, **which, MultipartUpload={"Parts": parts[::-1]})
    s3.abort_multipart_upload(**which)
    refused("NoSuchUpload", s3.list_parts, **which)


def parts_are_copied():
    s3.put_object(Bucket=BUCKET, Key="source", Body=b"a" * (6 * MIB))
    which = {"Bucket": BUCKET, "Key": "from-copies"}
    which["UploadId"] = s3.create_multipart_upload(**which)["UploadId"]
    source = {"Bucket": BUCKET, "Key": "source"}
    first = s3.upload_part_copy(**which, PartNumber=1, CopySource=source)
    last = s3.upload_part_copy(**which, PartNumber=2, CopySource=source, CopySourceRange="bytes=0-9")
    parts = [
        {"PartNumber": number, "ETag": part["CopyPartResult"]["ETag"]} for number, part in ((1, first), (2, last))
    ]
    s3.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=BUCKET, Key="from-copies")["Body"].read() == b"a" * (6 * MIB + 10)


def ranges():
    s3.put_object(Bucket=BUCKET, Key="digits", Body=b"0123456789")
    for wanted, found in (("bytes=0-3", b"0123"), ("bytes=-2", b"89"), ("bytes=9-", b"9"), ("bytes=4-400", b"456789")):
        answer = s3.get_object(Bucket=BUCKET, Key="digits", Range=wanted)
        assert answer["Body"].read() == found
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    refused("InvalidRange", s3.get_object, Bucket=BUCKET, Key="digits", Range="bytes=10-20")


def listings():
    keys = sorted(f"list/{folder}/{number:02}" for folder in "abc" for number in range(7))
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    for operation in ("list_objects", "list_objects_v2"):
        pages = s3.get_paginator(operation)
        for size in (1, 2, 5, 1000):
            found = [
                item["Key"]
                for page in pages.paginate(Bucket=BUCKET, Prefix="list/", PaginationConfig={"PageSize": size})
                for item in page.get("Contents", [])
            ]
            assert found == keys, (operation, size)
            folders = [
                item["Prefix"]
                for page in pages.paginate(
                    Bucket=BUCKET, Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": size}
                )
                for item in page.get("CommonPrefixes", [])
            ]
            assert folders == ["list/a/", "list/b/", "list/c/"], (operation, size, folders)
    none = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/", MaxKeys=0)
    assert none["KeyCount"] == 0 and not none["IsTruncated"]


def odd_keys():
    long = "x" * 1024
    keys = ["../../etc/passwd", "a//b", "//", "..", "ключ/鍵 🔑", "a+b c%20d?e&f", "tab\there", long]
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key="odd" + key if key != long else key, Body=key.encode())
    listed = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix="odd")["Contents"]]
    assert sorted(listed) == sorted("odd" + key for key in keys[:-1]), listed
    for key in keys:
        body = s3.get_object(Bucket=BUCKET, Key="odd" + key if key != long else key)["Body"].read()
        assert body == key.encode(), key
    refused("KeyTooLongError", s3.put_object, Bucket=BUCKET, Key=long + "x", Body=b"x")


def digests():
    good = {"Bucket": BUCKET, "Key": "digest", "Body": b"hello"}
    s3.put_object(**good, ContentMD5=base64.b64encode(hashlib.md5(b"hello").digest()).decode())
    s3.put_object(**good, ChecksumSHA256=base64.b64encode(hashlib.sha256(b"hello").digest()).decode())
    crc = base64.b64encode(zlib.crc32(b"hello").to_bytes(4, "big")).decode()
    s3.put_object(**good, ChecksumCRC32=crc)
    answer = s3.get_object(Bucket=BUCKET, Key="digest", ChecksumMode="ENABLED")
    assert answer["ChecksumCRC32"] == crc and answer["Body"].read() == b"hello"
    bad = {"Bucket": BUCKET, "Key": "digest", "Body": b"tampered"}
    refused("BadDigest", s3.put_object, **bad, ContentMD5=base64.b64encode(hashlib.md5(b"hello").digest()).decode())
    refused("BadDigest", s3.put_object, **bad, ChecksumCRC32=crc)
    refused("BadDigest", s3.put_object, **bad, ChecksumSHA256=base64.b64encode(hashlib.sha256(b"x").digest()).decode())
    refused("InvalidDigest", s3.put_object, **bad, ContentMD5="bm90IGFuIG1kNQ==")
    assert s3.get_object(Bucket=BUCKET, Key="digest")["Body"].read() == b"hello"


def descriptions_and_copies():
    s3.put_object(
        Bucket=BUCKET, Key="described", Body=b"x", ContentType="text/csv", Metadata={"a": "1"}, CacheControl="no-store"
    )
    s3.copy_object(Bucket=BUCKET, Key="copied", CopySource={"Bucket": BUCKET, "Key": "described"})
    head = s3.head_object(Bucket=BUCKET, Key="copied")
    assert (head["ContentType"], head["Metadata"], head["CacheControl"]) == ("text/csv", {"a": "1"}, "no-store")
    itself = {"Bucket": BUCKET, "Key": "copied", "CopySource": {"Bucket": BUCKET, "Key": "copied"}}
    refused("InvalidRequest", s3.copy_object, **itself)
    s3.copy_object(**itself, Metadata={"b": "2"}, MetadataDirective="REPLACE")
    assert s3.head_object(Bucket=BUCKET, Key="copied")["Metadata"] == {"b": "2"}
    refused("MetadataTooLarge", s3.put_object, Bucket=BUCKET, Key="x", Body=b"x", Metadata={"a": "1" * 2048})


def conditions():
    first = s3.put_object(Bucket=BUCKET, Key="once", Body=b"1", IfNoneMatch="*")["ETag"]
    refused("PreconditionFailed", s3.put_object, Bucket=BUCKET, Key="once", Body=b"2", IfNoneMatch="*")
    s3.put_object(Bucket=BUCKET, Key="once", Body=b"2", IfMatch=first)
    refused("PreconditionFailed", s3.put_object, Bucket=BUCKET, Key="once", Body=b"3", IfMatch=first)
    refused("PreconditionFailed", s3.get_object, Bucket=BUCKET, Key="once", IfMatch=first)
    etag = s3.head_object(Bucket=BUCKET, Key="once")["ETag"]
    refused("304", s3.head_object, Bucket=BUCKET, Key="once", IfNoneMatch=etag)


def deletes():
    for key in ("delete/1", "delete/2", "delete/3"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    keys = [{"Key": "delete/1"}, {"Key": "delete/2"}, {"Key": "delete/none"}]
    assert len(s3.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})["Deleted"]) == 3
    s3.delete_object(Bucket=BUCKET, Key="delete/none")
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix="delete/")["Contents"]] == ["delete/3"]
    refused("NoSuchKey", s3.get_object, Bucket=BUCKET, Key="delete/1")


def presigned_links():
    link = s3.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": "linked"}, ExpiresIn=60)
    urllib.request.urlopen(urllib.request.Request(link, data=b"by link", method="PUT")).read()
    link = s3.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": "linked"}, ExpiresIn=604800)
    assert urllib.request.urlopen(link).read() == b"by link"
    for wrong in (
        link.replace("linked", "described"),
        s3.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": "linked"}, ExpiresIn=604801),
        f"{ENDPOINT}/{BUCKET}/linked",
    ):
        try:
            urllib.request.urlopen(wrong)
        except urllib.error.HTTPError as error:
            assert error.code in (400, 403), error
        else:
            raise AssertionError(f"{wrong} was answered")


def wrong_keys():
    refused("SignatureDoesNotMatch", client(secret_key="wrong").get_object, Bucket=BUCKET, Key="linked")
    refused("InvalidAccessKeyId", client(access_key="AKIANOBODY").get_object, Bucket=BUCKET, Key="linked")


def unknown_operations():
    refused(
        "NotImplemented", s3.put_bucket_versioning, Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"}
    )
    refused("NotImplemented", s3.put_object, Bucket=BUCKET, Key="x", Body=b"x", ServerSideEncryption="AES256")
    refused("NotImplemented", s3.put_object, Bucket=BUCKET, Key="x", Body=b"x", ACL="public-read")


for check in (
    buckets,
    large_uploads_in_parts,
    small_parts_are_refused,
    parts_are_copied,
    ranges,
    listings,
    odd_keys,
    digests,
    descriptions_and_copies,
    conditions,
    deletes,
    presigned_links,
    wrong_keys,
    unknown_operations,
):
    check()
    print(f"ok {check.__name__}")
