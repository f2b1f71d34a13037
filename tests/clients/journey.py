"""The whole journey with unmodified boto3: data to S3, a job, its outputs, the tuned model's answers.

Endpoints and keys come from the environment that tests/clients/mod.rs sets.
"""

import json
import os
import time
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

BASE = "tunesmith.starter-v1:0"
ROLE = "arn:aws:iam::000000000000:role/tuner"

s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
bedrock = boto3.client("bedrock")
runtime = boto3.client("bedrock-runtime", config=Config(read_timeout=300))


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        assert error.response["ResponseMetadata"]["RequestId"], error
        return error.response["Error"]["Message"]
    raise AssertionError(f"{code} was expected")


def wait(job, *states):
    """Polls until the job is in one of the states; an end that is none of them fails at once."""
    while True:
        found = bedrock.get_model_customization_job(jobIdentifier=job)
        if found["status"] in states:
            return found
        assert found["status"] in ("InProgress", "Stopping"), found
        time.sleep(0.2)


# Data.
s3.create_bucket(Bucket="journey")
records = [{"prompt": f"colour {n % 7}", "completion": ["red", "blue", "green"][n % 3]} for n in range(64)]
lines = "".join(json.dumps(record) + "\n" for record in records)
s3.put_object(Bucket="journey", Key="data/train.jsonl", Body=lines)
s3.put_object(Bucket="journey", Key="data/validation.jsonl", Body="".join(lines.splitlines(True)[:8]))

# Base models.
models = bedrock.list_foundation_models(byCustomizationType="FINE_TUNING")["modelSummaries"]
base = next(model for model in models if model["modelId"] == BASE)
for identifier in (base["modelId"], base["modelArn"]):
    details = bedrock.get_foundation_model(modelIdentifier=identifier)["modelDetails"]
    assert details["modelArn"] == base["modelArn"]

# A job.
request = dict(
    jobName="journey-1",
    customModelName="journey-model",
    roleArn=ROLE,
    baseModelIdentifier=base["modelArn"],
    customizationType="FINE_TUNING",
    clientRequestToken=str(uuid.uuid4()),
    hyperParameters={"epochCount": "1", "batchSize": "8", "learningRate": "0.001", "learningRateWarmupSteps": "0"},
    jobTags=[{"key": "team", "value": "blue"}],
    trainingDataConfig={"s3Uri": "s3://journey/data/train.jsonl"},
    validationDataConfig={"validators": [{"s3Uri": "s3://journey/data/validation.jsonl"}]},
    outputDataConfig={"s3Uri": "s3://journey/output/"},
)
created = bedrock.create_model_customization_job(**request)
assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
arn = created["jobArn"]
assert bedrock.create_model_customization_job(**request)["jobArn"] == arn, "the same token is the same job"
taken = refused(
    "ValidationException", bedrock.create_model_customization_job, **{**request, "clientRequestToken": "other"}
)
assert taken == "The provided job name is currently in use.", taken

completed = wait(arn, "Completed")
assert wait("journey-1", "Completed")["jobArn"] == arn
assert completed["hyperParameters"] == request["hyperParameters"]
assert completed["validationDataConfig"] == request["validationDataConfig"]
assert completed["trainingMetrics"]["trainingLoss"] > 0
assert len(completed["validationMetrics"]) == 1
assert completed["endTime"] >= completed["creationTime"]
listed = bedrock.get_paginator("list_model_customization_jobs").paginate(PaginationConfig={"PageSize": 1})
assert [job["jobArn"] for page in listed for job in page["modelCustomizationJobSummaries"]] == [arn]

# Its outputs.
folder = f"output/model-customization-job-{arn.rsplit('/', 1)[1]}"


def output(name):
    return s3.get_object(Bucket="journey", Key=f"{folder}/{name}")["Body"].read()


steps = output("training_artifacts/step_wise_training_metrics.csv").decode().splitlines()
assert steps[0] == "step_number,epoch_number,training_loss,perplexity", steps[0]
assert len(steps) == 1 + 8, steps
validation = output(
    "validation_artifacts/post_fine_tuning_validation/validation/validation_metrics.csv"
).decode().splitlines()
assert validation[0] == "step_number,epoch_number,validation_loss,perplexity", validation[0]
assert json.loads(output("adapter/adapter_config.json"))["peft_type"] == "LORA"
assert output("adapter/adapter_model.safetensors")

# The model.
model = bedrock.get_custom_model(modelIdentifier="journey-model")
assert model["modelArn"] == completed["outputModelArn"] and model["jobArn"] == arn
assert bedrock.get_custom_model(modelIdentifier=model["modelArn"])["modelName"] == "journey-model"
assert model["modelStatus"] == "Active"
summaries = bedrock.list_custom_models(isOwned=True, foundationModelArnEquals=base["modelArn"])["modelSummaries"]
assert [summary["modelArn"] for summary in summaries] == [model["modelArn"]]
assert bedrock.list_custom_models(isOwned=False)["modelSummaries"] == []

# Answers, from the base and from the tuned model.
for model_id in (BASE, base["modelArn"], "journey-model", model["modelArn"]):
    said = runtime.converse(
        modelId=model_id,
        messages=[{"role": "user", "content": [{"text": "colour 3"}]}],
        inferenceConfig={"maxTokens": 8, "temperature": 0.0},
    )
    assert said["output"]["message"]["role"] == "assistant"
    assert isinstance(said["output"]["message"]["content"][0]["text"], str)
    assert said["usage"]["totalTokens"] == said["usage"]["inputTokens"] + said["usage"]["outputTokens"]
    reply = runtime.invoke_model(
        modelId=model_id, body=json.dumps({"prompt": "colour 3", "max_gen_len": 8, "temperature": 0})
    )
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    body = json.loads(reply["body"].read())
    assert body["generation_token_count"] == int(headers["x-amzn-bedrock-output-token-count"])

# Stopping another job: the status reads Stopping or Stopped by the time the call returns.
slow = {
    **request,
    "jobName": "journey-2",
    "customModelName": "journey-other",
    "clientRequestToken": str(uuid.uuid4()),
    "hyperParameters": {"epochCount": "1000", "batchSize": "8"},
}
second = bedrock.create_model_customization_job(**slow)["jobArn"]
bedrock.stop_model_customization_job(jobIdentifier=second)
assert bedrock.get_model_customization_job(jobIdentifier=second)["status"] in ("Stopping", "Stopped")
stopped = wait(second, "Stopped")
assert "outputModelArn" not in stopped
refused("ConflictException", bedrock.stop_model_customization_job, jobIdentifier=second)

# Deleting the model: it is gone, its job stays.
bedrock.delete_custom_model(modelIdentifier=model["modelArn"])
refused("ResourceNotFoundException", bedrock.get_custom_model, modelIdentifier="journey-model")
refused(
    "ResourceNotFoundException",
    runtime.converse,
    modelId="journey-model",
    messages=[{"role": "user", "content": [{"text": "colour 3"}]}],
)
assert bedrock.get_model_customization_job(jobIdentifier=arn)["status"] == "Completed"

# The same with a bearer key instead of a signature.
os.environ["AWS_BEARER_TOKEN_BEDROCK"] = os.environ["TUNESMITH_TEST_BEARER_KEY"]
assert boto3.client("bedrock").list_custom_models()["modelSummaries"] == []
os.environ["AWS_BEARER_TOKEN_BEDROCK"] = "wrong"
refused("AccessDeniedException", boto3.client("bedrock").list_custom_models)

print("the journey is complete")
