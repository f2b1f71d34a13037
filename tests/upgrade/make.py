"""Makes what `tests/upgrade` starts from: a database and the checkpoints of a job that an earlier version of the
program left running.

    python tests/upgrade/make.py OLD_BINARY POSTGRES_URL tests/upgrade/0.1.0

OLD_BINARY is `tunesmith` as that version built it. It serves once on SQLite and once on an empty schema of
POSTGRES_URL, trains a job on a tiny model drawn here, and is killed when it has kept its second checkpoint. The
folder then has the model, the data, both databases as SQL text, and the objects of the newest checkpoint; they are
good for both databases, because the two jobs were asked for the same. Needs boto3, sqlite3 and pg_dump. What is there
stays as it is: a new version gets a folder of its own.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time

import boto3
import botocore.config

ACCESS, SECRET = "AKIAUPGRADETESTS", "a-secret-for-upgrade-tests"
MODEL = "tunesmith.tiny-v1:0"
WIDTH, INNER, LAYERS, HEADS, KEY_HEADS = 32, 64, 2, 4, 2
JOB = {
    "stepCount": "300",
    "batchSize": "8",
    "learningRate": "0.01",
    "learningRateWarmupSteps": "20",
    "loraRank": "2",
    "loraDropout": "0.1",
    "evaluationInterval": "50",
    "earlyStoppingPatience": "50",
    "checkpointInterval": "60",
    "seed": "7",
}


def tokenizer():
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>"] + letters)}
    special = lambda n, content: {
        "id": n, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }
    return vocabulary, {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": False},
        "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }


def make_model(folder):
    folder.mkdir(parents=True)
    vocabulary, tokens = tokenizer()
    head = WIDTH // HEADS
    shapes = {"model.embed_tokens.weight": [len(vocabulary), WIDTH], "model.norm.weight": [WIDTH]}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        shapes |= {
            layer + "input_layernorm.weight": [WIDTH],
            layer + "post_attention_layernorm.weight": [WIDTH],
            layer + "self_attn.q_proj.weight": [WIDTH, WIDTH],
            layer + "self_attn.k_proj.weight": [KEY_HEADS * head, WIDTH],
            layer + "self_attn.v_proj.weight": [KEY_HEADS * head, WIDTH],
            layer + "self_attn.o_proj.weight": [WIDTH, WIDTH],
            layer + "mlp.gate_proj.weight": [INNER, WIDTH],
            layer + "mlp.up_proj.weight": [INNER, WIDTH],
            layer + "mlp.down_proj.weight": [WIDTH, INNER],
        }
    draw, header, body = random.Random(11), {}, b""
    for name, shape in sorted(shapes.items()):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * count if len(shape) == 1 else [draw.gauss(0, 0.08) for _ in range(count)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + 4 * count]}
        body += struct.pack(f"<{count}f", *values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(vocabulary),
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS, "head_dim": head, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu",
    }
    for name, value in [("config.json", config), ("tokenizer.json", tokens),
                        ("tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})]:
        (folder / name).write_text(json.dumps(value))


def sums(numbers):
    record = lambda n: {"prompt": f"{n}+{n * 7 % 10}=", "completion": str(n + n * 7 % 10)}
    return "".join(json.dumps(record(n)) + "\n" for n in numbers)


class Service:
    """The old binary on a data folder."""

    def __init__(self, binary, folder, models, database, arguments=()):
        self.ready, self.log = folder / "ready.json", folder / "log"
        self.ready.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "S3_ENDPOINT")}
        environment |= {
            "TUNESMITH_DATA_DIR": str(folder), "TUNESMITH_MODELS": str(models), "AWS_REGION": "us-east-1",
            "TUNESMITH_ROOT_ACCESS_KEY": ACCESS, "TUNESMITH_ROOT_SECRET_KEY": SECRET,
        } | ({"DATABASE_URL": database} if database else {})
        command = [binary, "serve", "--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0", f"--ready-file={self.ready}"]
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)
        while not self.ready.exists() or not self.ready.read_text().strip():
            assert self.child.poll() is None, self.log.read_text()
            time.sleep(0.05)
        addresses = json.loads(self.ready.read_text())
        client = lambda name, port: boto3.client(
            name, endpoint_url=f"http://{addresses[port]}", region_name="us-east-1", aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET, config=botocore.config.Config(s3={"addressing_style": "path"}))
        self.s3, self.bedrock = client("s3", "s3"), client("bedrock", "listen")


def leave_running(binary, folder, models, data, database):
    """Lets the job run until it has kept two checkpoints, and kills the process: gives the job's id."""
    folder.mkdir()
    service = Service(binary, folder, models, database)
    service.s3.create_bucket(Bucket="tuning")
    for path in data:
        service.s3.put_object(Bucket="tuning", Key=path.name, Body=path.read_bytes())
    arn = service.bedrock.create_model_customization_job(
        jobName="left-running", customModelName="finished-later", roleArn="arn:aws:iam::111111111111:role/tuner",
        baseModelIdentifier=MODEL, trainingDataConfig={"s3Uri": "s3://tuning/train.jsonl"},
        validationDataConfig={"validators": [{"s3Uri": "s3://tuning/validation.jsonl"}]},
        outputDataConfig={"s3Uri": "s3://tuning/out/"}, hyperParameters=JOB)["jobArn"]
    # A few milliseconds at a time, so that it is caught in the middle.
    while service.log.read_text().count("checkpoint kept") < 2:
        time.sleep(0.01)
        service.child.send_signal(signal.SIGSTOP)
        assert "job completed" not in service.log.read_text(), "it was too quick"
        if service.log.read_text().count("checkpoint kept") >= 2:
            break
        service.child.send_signal(signal.SIGCONT)
    service.child.kill()
    service.child.wait()
    return arn.rsplit("/", 1)[1]


def dump_postgres(url, schema):
    text = subprocess.run(["pg_dump", url, "-n", schema, "--no-owner", "--no-privileges", "--inserts"],
                          check=True, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines()
             if line and not line.startswith(("--", "SET ", "\\", "SELECT pg_catalog.set_config", "CREATE SCHEMA"))]
    return "\n".join(lines).replace(f"{schema}.", "") + "\n"


def main(binary, url, target):
    target = pathlib.Path(target)
    target.mkdir(parents=True, exist_ok=True)
    models = target / "models"
    shutil.rmtree(models, ignore_errors=True)
    make_model(models / MODEL)
    data = [target / "train.jsonl", target / "validation.jsonl"]
    data[0].write_text(sums(range(64)))
    data[1].write_text(sums(range(64, 72)))
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        job = leave_running(binary, work / "sqlite", models, data, None)
        # The journal is read too.
        database = sqlite3.connect(next((work / "sqlite").glob("*.db")))
        (target / "sqlite.sql").write_text("\n".join(database.iterdump()) + "\n")
        database.close()
        service = Service(binary, work / "sqlite", models, None, ["--role=api"])
        found = service.s3.list_objects_v2(Bucket="tuning", Prefix=f"out/model-customization-job-{job}/attempt-1/")
        newest = max(re.search(r"step-(\d+)", one["Key"]).group(1) for one in found["Contents"] if "step-" in one["Key"])
        shutil.rmtree(target / "checkpoint", ignore_errors=True)
        for one in found["Contents"]:
            if f"/step-{newest}/" in one["Key"]:
                path = target / "checkpoint" / one["Key"].split("/attempt-1/")[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(service.s3.get_object(Bucket="tuning", Key=one["Key"])["Body"].read())
        service.child.terminate()
        service.child.wait()

        schema = "made_for_upgrade_tests"
        execute = lambda sql: subprocess.run(["psql", url, "-qc", sql], check=True)
        execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")
        leave_running(binary, work / "postgres", models, data, f"{url}?options[search_path]={schema}")
        (target / "postgres.sql").write_text(dump_postgres(url, schema))
        execute(f"DROP SCHEMA {schema} CASCADE")


if __name__ == "__main__":
    main(*sys.argv[1:])
