"""Distillation through the API by unmodified boto3: an imported model teaches, its answers are what is learned and lie
among the outputs; invocation logs teach without their model being here. What cannot teach is refused.

Endpoints and keys come from the environment that tests/clients/mod.rs sets.
"""

import gzip
import json
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

BASE = "tunesmith.starter-v1:0"
ROLE = "arn:aws:iam::000000000000:role/tuner"

s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
bedrock = boto3.client("bedrock")
runtime = boto3.client("bedrock-runtime", config=Config(read_timeout=300))


def put(key, lines):
    s3.put_object(Bucket="distillation", Key=key, Body="".join(json.dumps(line) + "\n" for line in lines))


def read(job, name):
    key = f"output/model-customization-job-{job[-12:]}/distillation/{name}"
    body = s3.get_object(Bucket="distillation", Key=key)["Body"].read().decode()
    return [json.loads(line) for line in body.splitlines()]


def create(name, training, teacher=None, limit=None, **parameters):
    config = {}
    if teacher:
        teaches = {"teacherModelIdentifier": teacher}
        if limit is not None:
            teaches["maxResponseLengthForInference"] = limit
        config = {"customizationConfig": {"distillationConfig": {"teacherModelConfig": teaches}}}
    return bedrock.create_model_customization_job(
        jobName=name,
        customModelName=name,
        roleArn=ROLE,
        baseModelIdentifier=BASE,
        customizationType="DISTILLATION" if teacher or parameters.pop("distill", False) else "FINE_TUNING",
        hyperParameters={"batchSize": "16", "learningRate": "0.02", "learningRateWarmupSteps": "0", **parameters},
        trainingDataConfig=training,
        outputDataConfig={"s3Uri": "s3://distillation/output"},
        **config,
    )["jobArn"]


def ended(job):
    while (found := bedrock.get_model_customization_job(jobIdentifier=job))["status"] == "InProgress":
        time.sleep(0.1)
    return found


def completed(job):
    found = ended(job)
    assert found["status"] == "Completed", found.get("failureMessage")
    return found


def ask(model, text):
    said = runtime.converse(
        modelId=model,
        messages=[{"role": "user", "content": [{"text": text}]}],
        inferenceConfig={"maxTokens": 8, "temperature": 0},
    )
    return said["output"]["message"]["content"][0]["text"], said["stopReason"]


def turn(text):
    return {
        "schemaVersion": "bedrock-conversation-2024",
        "messages": [{"role": "user", "content": [{"text": text}]}],
    }


# A teacher that was made here and brought in again as a whole model of its own.
s3.create_bucket(Bucket="distillation")
colours = ["red", "blue", "green"]
put("teach.jsonl", [{"prompt": f"colour {n % 24}", "completion": colours[n % 24 % 3]} for n in range(96)])
made = completed(
    create("made", {"s3Uri": "s3://distillation/teach.jsonl"}, tuningMethod="full", learningRate="0.005", epochCount="10")
)
imported = bedrock.create_model_import_job(
    jobName="teacher",
    importedModelName="teacher",
    roleArn=ROLE,
    modelDataSource={
        "s3DataSource": {"s3Uri": f"s3://distillation/output/model-customization-job-{made['jobArn'][-12:]}/model/"}
    },
)["jobArn"]
while (found := bedrock.get_model_import_job(jobIdentifier=imported))["status"] == "InProgress":
    time.sleep(0.1)
assert found["status"] == "Completed", found
teacher = found["importedModelArn"]

# What is of no use is left out with its place; an answer beside a prompt is not the teacher's, and not learned.
prompts = [turn(f"colour {n}") for n in range(24)]
prompts[3]["messages"].append({"role": "assistant", "content": [{"text": "mauve"}]})
broken = {"messages": [{"role": "assistant", "content": [{"text": "colour 1"}]}]}
put("prompts.jsonl", prompts + [broken])
config = {"s3Uri": "s3://distillation/prompts.jsonl"}
job = create("student", config, teacher, limit=8, epochCount="40", batchSize="8", learningRate="0.005")
done = completed(job)
assert done["customizationType"] == "DISTILLATION", done
assert done["customizationConfig"]["distillationConfig"]["teacherModelConfig"] == {
    "teacherModelIdentifier": teacher,
    "maxResponseLengthForInference": 8,
}, done
assert {detail["status"] for detail in done["statusDetails"].values()} == {"Completed"}, done
learned = {
    record["messages"][0]["content"][0]["text"]: record["messages"][1]["content"][0]["text"]
    for record in read(job, "training_data.jsonl")
}
manifest = json.loads(
    s3.get_object(
        Bucket="distillation", Key=f"output/model-customization-job-{job[-12:]}/training_manifest.json"
    )["Body"].read()
)
assert (manifest["customizationType"], manifest["teacherModel"]) == ("DISTILLATION", teacher), manifest
answered = 0
for prompt in prompts:
    text = prompt["messages"][0]["content"][0]["text"]
    says, why = ask(teacher, text)
    if why == "end_turn":
        assert learned[text] == says, (text, learned[text], says)
        answered += 1
    else:
        assert text not in learned, f"an answer that was cut was learned: {learned[text]!r}"
assert answered == len(learned) >= 20, f"{answered} of {len(prompts)} prompts were answered"
left_out = read(job, "left_out.jsonl")
assert [line["line"] for line in left_out] == [25] and 'expected "user"' in left_out[0]["reason"], left_out
same = sum(ask(done["outputModelArn"], text)[0] == says for text, says in learned.items())
print(f"the student says what the teacher says to {same} of {len(learned)} prompts")
assert same >= 0.9 * len(learned), f"{same} of {len(learned)}"


# Logs of a model that is not here: its answers are learned, those of other models and projects are not.
def log(text, said, model="arn:aws:bedrock:us-east-1::foundation-model/vendor.large-v1:0", project="a", **more):
    return {
        "schemaType": "ModelInvocationLog",
        "schemaVersion": "1.0",
        "operation": "Converse",
        "modelId": model,
        "requestMetadata": {"project": project},
        "input": {"inputBodyJson": {"messages": [{"role": "user", "content": [{"text": text}]}]}},
        "output": {
            "outputBodyJson": {
                "output": {"message": {"role": "assistant", "content": [{"text": said}]}},
                "stopReason": "end_turn",
            }
        },
        **more,
    }


lines = [log(f"colour {n}", colours[n % 3]) for n in range(30)]
lines += [log("secret", "b", project="b"), log("other", "x", model="vendor.small-v1:0")]
lines += [log("failed", "x", errorCode="ThrottlingException")]
packed = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
folder = "logs/AWSLogs/000000000000/BedrockModelInvocationLogs/us-east-1/2026/01/02/03"
s3.put_object(Bucket="distillation", Key=f"{folder}/20260102T030405_a.json.gz", Body=packed)
s3.put_object(Bucket="distillation", Key=f"{folder}/data/x_input.json.gz", Body=b"no log")
logs = {
    "invocationLogsConfig": {
        "usePromptResponse": True,
        "invocationLogSource": {"s3Uri": "s3://distillation/logs/"},
        "requestMetadataFilters": {"equals": {"project": "a"}},
    }
}
job = create("from-logs", logs, "vendor.large-v1:0", epochCount="2")
completed(job)
records = [record["messages"][0]["content"][0]["text"] for record in read(job, "training_data.jsonl")]
assert records == [f"colour {n}" for n in range(30)], records
reasons = [line["reason"] for line in read(job, "left_out.jsonl")]
assert len(reasons) == 2 and "not the teacher's" in reasons[0] and "failed" in reasons[1], reasons

# Their prompts alone are asked anew, of a teacher that is here.
logs["invocationLogsConfig"]["usePromptResponse"] = False
job = create("asked-anew", logs, made["outputModelArn"], limit=8, epochCount="1")
completed(job)
assert 0 < len(read(job, "training_data.jsonl")) <= 31


def refused(said, *arguments, **more):
    try:
        create("refused", *arguments, **more)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ValidationException", error
        assert said in error.response["Error"]["Message"], error
        return
    raise AssertionError(f"a refusal was expected that says {said}")


refused("there is no model 'vendor.large-v1:0' here", config, "vendor.large-v1:0")
refused("there is no model 'vendor.large-v1:0' here", logs, "vendor.large-v1:0")
refused("maxResponseLengthForInference must be 1 or more", config, teacher, limit=0)
refused("needs a teacher", config, distill=True)
refused("trainingObjective dpo learns from preferences", config, teacher, trainingObjective="dpo")
refused("is only for customizationType DISTILLATION", logs)
empty = {"invocationLogsConfig": {"invocationLogSource": {"s3Uri": "s3://distillation/nothing/"}}}
refused("There is no object under s3://distillation/nothing/", empty, teacher)

# A teacher that never comes to an end teaches nothing, and the message says what to change.
failed = ended(create("cut", config, BASE, limit=1))
assert failed["status"] == "Failed" and "set a larger maxResponseLengthForInference" in failed["failureMessage"], failed
