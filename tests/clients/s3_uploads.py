"""Uploads and downloads of a large object by one S3 client, unmodified, against the embedded S3 server.

    python3 s3_uploads.py CLIENT PORT ACCESS_KEY SECRET_KEY SCRATCH MEGABYTES

Each client uses the defaults of its makers as far as they let it find the server. What it uploads is read back by it and
held against the file, and the server's size of it is asked by a plain request.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

CLIENT, PORT, ACCESS_KEY, SECRET_KEY, SCRATCH, MEGABYTES = sys.argv[1:7]
ENDPOINT = f"http://127.0.0.1:{PORT}"
BUCKET = "uploads"
HERE = pathlib.Path(__file__).parent
SOURCE, BACK = pathlib.Path(SCRATCH, "source.bin"), pathlib.Path(SCRATCH, "back.bin")
ENVIRONMENT = {
    # A bundle of certificates of the machine is none of the clients that cannot take one.
    **{name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"},
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


def run(*command, **environment):
    done = subprocess.run(
        [str(word) for word in command], env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def boto3_client(**settings):
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=settings.pop("endpoint", ENDPOINT),
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(**settings),
    )


def boto3_plain():
    s3 = boto3_client()
    s3.upload_file(str(SOURCE), BUCKET, "large")
    s3.download_file(BUCKET, "large", str(BACK))


def boto3_hosted():
    import socket

    resolve = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *rest, **named: resolve(
        "127.0.0.1" if str(host).endswith("localhost") else host, *rest, **named
    )
    s3 = boto3_client(endpoint=f"http://localhost:{PORT}", s3={"addressing_style": "virtual"})
    s3.upload_file(str(SOURCE), BUCKET, "large")
    s3.download_file(BUCKET, "large", str(BACK))


def boto3_crt():
    """The transfer manager and the checksums of AWS's common runtime."""
    import awscrt  # noqa: F401

    s3 = boto3_client()
    for algorithm in ("CRC64NVME", "CRC32C", "CRC32", None):
        extra = {"ChecksumAlgorithm": algorithm} if algorithm else None
        s3.upload_file(str(SOURCE), BUCKET, "large", ExtraArgs=extra)
        s3.download_file(BUCKET, "large", str(BACK))
        same()
    if not default_port():
        print("NOT RUN: the client of the common runtime knows no port but 80, which may not be bound here")
        return
    transfer_manager()
    same()
    whole_object_checksums()


def transfer_manager():
    """The transfer manager of the common runtime; boto3 takes it only to AWS itself, so it is made by hand."""
    import botocore.session
    from botocore.credentials import Credentials
    from s3transfer import crt

    session = botocore.session.Session()
    session.set_credentials(ACCESS_KEY, SECRET_KEY)
    serializer = crt.BotocoreCRTRequestSerializer(
        session, {"region_name": "us-east-1", "endpoint_url": f"http://{LOOPBACK}"}
    )
    credentials = crt.BotocoreCRTCredentialsWrapper(Credentials(ACCESS_KEY, SECRET_KEY)).to_crt_credentials_provider()
    client = crt.create_s3_crt_client("us-east-1", crt_credentials_provider=credentials, use_ssl=False, part_size=5 << 20)
    with crt.CRTTransferManager(client, serializer) as manager:
        manager.upload(str(SOURCE), BUCKET, "large").result()
        manager.download(BUCKET, "large", str(BACK)).result()


# An address of this machine that nothing else listens on.
LOOPBACK = "127.0.0.77"


def default_port():
    """Passes on what arrives at port 80 to the server; whether it can."""
    import socket
    import threading

    def copy(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept(listener):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", int(PORT)))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    try:
        listener = socket.create_server((LOOPBACK, 80), backlog=64)
    except OSError:
        return False
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    return True


def whole_object_checksums():
    """The client of the common runtime itself, which sends checksums of whole uploads."""
    from awscrt import auth, http, io, s3

    group = io.EventLoopGroup(2)
    bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
    credentials = auth.AwsCredentialsProvider.new_static(ACCESS_KEY, SECRET_KEY)
    signing = s3.create_default_s3_signing_config(region="us-east-1", credential_provider=credentials)
    client = s3.S3Client(
        bootstrap=bootstrap, region="us-east-1", signing_config=signing, part_size=5 << 20, tls_mode=s3.S3RequestTlsMode.DISABLED
    )
    endpoint = [("host", LOOPBACK)]
    for algorithm in (s3.S3ChecksumAlgorithm.CRC64NVME, s3.S3ChecksumAlgorithm.CRC32C, s3.S3ChecksumAlgorithm.CRC32):
        name = f"/{BUCKET}/{algorithm.name.lower()}"
        checksum = s3.S3ChecksumConfig(algorithm=algorithm, location=s3.S3ChecksumLocation.TRAILER)
        length = [("content-length", str(SOURCE.stat().st_size))]
        put = http.HttpRequest("PUT", name, http.HttpHeaders(endpoint + length))
        client.make_request(
            type=s3.S3RequestType.PUT_OBJECT, request=put, send_filepath=str(SOURCE), checksum_config=checksum
        ).finished_future.result(900)
        checked = s3.S3ChecksumConfig(validate_response=True)
        get = http.HttpRequest("GET", name, http.HttpHeaders(endpoint))
        client.make_request(
            type=s3.S3RequestType.GET_OBJECT, request=get, recv_filepath=str(BACK), checksum_config=checked
        ).finished_future.result(900)
        same()


def cli(program):
    at = ("--endpoint-url", ENDPOINT)
    run(program, "s3", "cp", "--no-progress", SOURCE, f"s3://{BUCKET}/large", *at)
    run(program, "s3", "cp", "--no-progress", f"s3://{BUCKET}/large", BACK, *at)
    assert "large" in run(program, "s3", "ls", f"s3://{BUCKET}/", *at)


def rclone():
    remote = f":s3,provider=Other,env_auth,region=us-east-1,endpoint='{ENDPOINT}':{BUCKET}"
    # Where rclone looks first it finds no settings of whoever runs the test.
    settings = {"RCLONE_CONFIG": "/dev/null"}
    run("/usr/bin/rclone", "copyto", SOURCE, f"{remote}/large", "--s3-upload-cutoff", "10M", "--s3-chunk-size", "5M", **settings)
    run("/usr/bin/rclone", "copyto", f"{remote}/large", BACK, **settings)
    run("/usr/bin/rclone", "check", SOURCE.parent, remote, "--include", "large", "--download", "--one-way", **settings)


def javascript():
    run("node", os.environ["S3_UPLOADS_JAVASCRIPT"], PORT, SOURCE, BACK, BUCKET)


def minio():
    from minio import Minio

    store = Minio(f"127.0.0.1:{PORT}", ACCESS_KEY, SECRET_KEY, secure=False)
    store.fput_object(BUCKET, "large", str(SOURCE), part_size=5 << 20)
    store.fget_object(BUCKET, "large", str(BACK))


def s3fs():
    from s3fs import S3FileSystem

    store = S3FileSystem(key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=ENDPOINT)
    store.put(str(SOURCE), f"{BUCKET}/large")
    store.get(f"{BUCKET}/large", str(BACK))
    assert store.info(f"{BUCKET}/large")["size"] == SOURCE.stat().st_size
    # A file system that keeps versions asks whether the bucket does.
    versioned = S3FileSystem(key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=ENDPOINT, version_aware=True)
    assert not versioned.is_bucket_versioned(BUCKET)
    with versioned.open(f"{BUCKET}/large", "rb") as file:
        assert file.read(1 << 20) == SOURCE.read_bytes()[: 1 << 20]


def obstore():
    from obstore.store import S3Store

    import obstore as library

    store = S3Store(
        BUCKET,
        endpoint=ENDPOINT,
        region="us-east-1",
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        client_options={"allow_http": True},
    )
    library.put(store, "large", SOURCE)
    BACK.write_bytes(library.get(store, "large").bytes())
    assert library.head(store, "large")["size"] == SOURCE.stat().st_size


def pyarrow():
    from pyarrow.fs import S3FileSystem

    store = S3FileSystem(
        access_key=ACCESS_KEY, secret_key=SECRET_KEY, endpoint_override=f"127.0.0.1:{PORT}", scheme="http", region="us-east-1"
    )
    with SOURCE.open("rb") as source, store.open_output_stream(f"{BUCKET}/large") as target:
        shutil.copyfileobj(source, target, 4 << 20)
    with store.open_input_stream(f"{BUCKET}/large") as source, BACK.open("wb") as target:
        shutil.copyfileobj(source, target, 4 << 20)


def same():
    digest = lambda path: hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
    assert digest(SOURCE) == digest(BACK), f"{CLIENT} reads back other bytes"
    BACK.unlink()


CLIENTS = {
    "boto3": boto3_plain,
    "boto3-hosted": boto3_hosted,
    "boto3-crt": boto3_crt,
    "aws-cli-1": lambda: cli("aws"),
    "aws-cli-2": lambda: cli("/usr/bin/aws"),
    "rclone": rclone,
    "lib-storage": javascript,
    "minio": minio,
    "s3fs": s3fs,
    "obstore": obstore,
    "pyarrow": pyarrow,
}
begun = time.monotonic()
with SOURCE.open("wb") as file:
    for _ in range(int(MEGABYTES)):
        file.write(os.urandom(1_000_000))
    file.write(b"an odd end")
CLIENTS[CLIENT]()
if BACK.exists():
    same()
print(f"ok {CLIENT}: {MEGABYTES} MB up and down in {time.monotonic() - begun:.1f} s")
