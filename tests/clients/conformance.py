"""Thirty things that clients rely on, by unmodified boto3. conformance.mjs checks the same thirty by the JavaScript
SDK; the numbers are the same in both.

Endpoints and keys come from the environment that tests/clients/mod.rs sets.
"""

import datetime
import json
import os
import re
import time
import uuid

import boto3
import botocore.auth
from botocore.config import Config
from botocore.exceptions import ClientError

BASE = "tunesmith.starter-v1:0"
ROLE = "arn:aws:iam::000000000000:role/tuner"
DEPLOYMENT_STATES = ("Creating", "Active")

once = Config(retries={"max_attempts": 0})
bedrock = boto3.client("bedrock", config=once)
runtime = boto3.client("bedrock-runtime", config=Config(read_timeout=300))
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
raw = {}
bedrock.meta.events.register(
    "before-parse.bedrock.*", lambda response_dict, **_: raw.update(body=response_dict["body"])
)
checks = []


def check(number, name):
    def run(body):
        assert number == len(checks) + 1, f"check {number} is out of order"
        body()
        checks.append(name)
        print(f"{number:2} {name}")

    return run


def refused(code, status, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        found = (error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"])
        assert found == (code, status), error
        assert re.fullmatch("[0-9a-f-]{36}", error.response["ResponseMetadata"]["RequestId"]), error
        return error.response
    raise AssertionError(f"{code} was expected")


def message(response):
    return response["Error"]["Message"]


def status(response):
    return response["ResponseMetadata"]["HTTPStatusCode"]


def poll(get, name, waiting):
    begun = time.monotonic()
    while (found := get())[name] in waiting:
        assert time.monotonic() - begun < 300, found
        time.sleep(0.1)
    return found


def request(name, **changes):
    made = dict(
        jobName=name,
        customModelName="model-" + name.replace("+", "-").replace(".", "-"),
        roleArn=ROLE,
        baseModelIdentifier=BASE,
        clientRequestToken=str(uuid.uuid4()),
        hyperParameters={"epochCount": "1", "batchSize": "8", "learningRate": "1e-3"},
        trainingDataConfig={"s3Uri": "s3://conformance/data/train.jsonl"},
        outputDataConfig={"s3Uri": "s3://conformance/output"},
    )
    return {**made, **changes}


def get_job(identifier):
    return bedrock.get_model_customization_job(jobIdentifier=identifier)


s3.create_bucket(Bucket="conformance")
lines = [{"prompt": f"colour {n % 7}", "completion": ["red", "blue", "green"][n % 3]} for n in range(32)]
s3.put_object(Bucket="conformance", Key="data/train.jsonl", Body="".join(json.dumps(line) + "\n" for line in lines))
first = request("first", jobTags=[{"key": "team", "value": "blue"}])
made = {}


@check(1, "a job is created with 201 and an ARN that holds its base model's id")
def _():
    made["reply"] = bedrock.create_model_customization_job(**first)
    made["job"] = made["reply"]["jobArn"]
    assert status(made["reply"]) == 201
    assert re.fullmatch(rf"arn:aws:bedrock:us-east-1:\d{{12}}:model-customization-job/{BASE}/[a-z0-9]{{12}}", made["job"])


@check(2, "the same token is the same job, and with another body a ConflictException of status 400")
def _():
    assert bedrock.create_model_customization_job(**first)["jobArn"] == made["job"]
    other = {**first, "customModelName": "other"}
    refused("ConflictException", 400, bedrock.create_model_customization_job, **other)


@check(3, "a taken job name is refused with the sentence that clients compare")
def _():
    again = {**first, "clientRequestToken": "another"}
    said = message(refused("ValidationException", 400, bedrock.create_model_customization_job, **again))
    assert said == "The provided job name is currently in use.", said


@check(4, "a job is found by its ARN, whose slashes travel encoded, and by its name")
def _():
    assert get_job(made["job"])["jobName"] == "first"
    assert get_job("first")["jobArn"] == made["job"]


@check(5, "hyperparameters come back exactly as they were sent")
def _():
    assert get_job("first")["hyperParameters"] == first["hyperParameters"]


@check(6, "members that do not apply are left out")
def _():
    slow = request("slow", hyperParameters={"epochCount": "1000", "batchSize": "8"})
    made["slow"] = bedrock.create_model_customization_job(**slow)["jobArn"]
    found = get_job("slow")
    for name in ("validationDataConfig", "vpcConfig", "outputModelArn", "endTime", "failureMessage"):
        assert name not in found and name.encode() not in raw["body"], name
    assert found["customizationType"] == "FINE_TUNING" and found["status"] == "InProgress"


@check(7, "times are texts of RFC 3339 with milliseconds and Z")
def _():
    found = get_job("first")
    assert isinstance(found["creationTime"], datetime.datetime)
    for name in ("creationTime", "lastModifiedTime"):
        text = json.loads(raw["body"])[name]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text), text


@check(8, "a name with a plus in it travels")
def _():
    bedrock.create_model_customization_job(**request("a+b.c"))
    assert get_job("a+b.c")["jobName"] == "a+b.c"
    found = bedrock.list_model_customization_jobs(nameContains="a+b")["modelCustomizationJobSummaries"]
    assert [job["jobName"] for job in found] == ["a+b.c"]


@check(9, "a stop is visible when its call returns, and ends without a model")
def _():
    bedrock.stop_model_customization_job(jobIdentifier=made["slow"])
    assert get_job("slow")["status"] in ("Stopping", "Stopped")
    ended = poll(lambda: get_job("slow"), "status", ("Stopping",))
    assert ended["status"] == "Stopped" and "outputModelArn" not in ended and ended["endTime"]


@check(10, "a job that has ended cannot be stopped")
def _():
    refused("ConflictException", 400, bedrock.stop_model_customization_job, jobIdentifier=made["slow"])


@check(11, "a job completes and names its model")
def _():
    ended = poll(lambda: get_job("first"), "status", ("InProgress",))
    assert ended["status"] == "Completed", ended
    made["model"] = ended["outputModelArn"]
    assert re.fullmatch(rf"arn:aws:bedrock:us-east-1:\d{{12}}:custom-model/{BASE}/[a-z0-9]{{12}}", made["model"])
    assert ended["trainingMetrics"]["trainingLoss"] > 0


@check(12, "the metrics lie where AWS puts them")
def _():
    key = f"output/model-customization-job-{made['job'][-12:]}/training_artifacts/step_wise_training_metrics.csv"
    text = s3.get_object(Bucket="conformance", Key=key)["Body"].read().decode()
    assert text.startswith("step_number,epoch_number,training_loss,perplexity"), text


@check(13, "a model is found by ARN and by name, active, with the job that made it")
def _():
    for identifier in (made["model"], "model-first"):
        model = bedrock.get_custom_model(modelIdentifier=identifier)
        assert model["modelArn"] == made["model"] and model["jobArn"] == made["job"]
        assert model["modelStatus"] == "Active" and model["customizationType"] == "FINE_TUNING"


@check(14, "pages show everything once, newest first, and the last has no token")
def _():
    pages = list(bedrock.get_paginator("list_model_customization_jobs").paginate(PaginationConfig={"PageSize": 1}))
    names = [job["jobName"] for page in pages for job in page["modelCustomizationJobSummaries"]]
    assert names == ["a+b.c", "slow", "first"], names
    assert "nextToken" not in pages[-1] and "nextToken" in pages[0]


@check(15, "a page token belongs to its filters, and rubbish is none")
def _():
    page = bedrock.list_model_customization_jobs(maxResults=1)
    arguments = dict(maxResults=1, statusEquals="Completed", nextToken=page["nextToken"])
    refused("ValidationException", 400, bedrock.list_model_customization_jobs, **arguments)
    refused("ValidationException", 400, bedrock.list_model_customization_jobs, nextToken="rubbish")


@check(16, "listings are filtered by state, name and time, and sorted")
def _():
    def names(**arguments):
        found = bedrock.list_model_customization_jobs(**arguments)["modelCustomizationJobSummaries"]
        return [job["jobName"] for job in found]

    assert names(statusEquals="Stopped") == ["slow"]
    assert names(nameContains="FIRST") == ["first"]
    assert names(sortBy="CreationTime", sortOrder="Ascending")[0] == "first"
    at = get_job("slow")["creationTime"]
    microsecond = datetime.timedelta(microseconds=1000)
    assert names(creationTimeAfter=at - microsecond, creationTimeBefore=at + microsecond) == ["slow"]
    assert names(creationTimeAfter=at)[-1] != "slow", "times are strict"


@check(17, "tags are listed, replaced and removed by resourceARN")
def _():
    bedrock.tag_resource(resourceARN=made["job"], tags=[{"key": "team", "value": "red"}, {"key": "x", "value": ""}])
    bedrock.untag_resource(resourceARN=made["job"], tagKeys=["x", "never-there"])
    assert bedrock.list_tags_for_resource(resourceARN=made["job"])["tags"] == [{"key": "team", "value": "red"}]
    assert bedrock.list_tags_for_resource(resourceARN=made["model"])["tags"] == []


@check(18, "fifty-one tags are too many, counting those already there")
def _():
    tags = [{"key": f"k{n}", "value": "v"} for n in range(50)]
    said = refused("TooManyTagsException", 400, bedrock.tag_resource, resourceARN=made["job"], tags=tags)
    assert said["resourceName"] == made["job"], said
    bedrock.tag_resource(resourceARN=made["job"], tags=tags[:49])
    assert len(bedrock.list_tags_for_resource(resourceARN=made["job"])["tags"]) == 50


@check(19, "what is not there is a ResourceNotFoundException of status 404")
def _():
    gone = made["job"][:-12] + "absentabsent"
    refused("ResourceNotFoundException", 404, bedrock.list_tags_for_resource, resourceARN=gone)
    refused("ResourceNotFoundException", 404, bedrock.get_model_customization_job, jobIdentifier=gone)
    refused("ResourceNotFoundException", 404, bedrock.get_custom_model, modelIdentifier="no-such-model")


@check(20, "foundation models are filtered, and a value outside an enum is named")
def _():
    def ids(**arguments):
        return [model["modelId"] for model in bedrock.list_foundation_models(**arguments)["modelSummaries"]]

    assert BASE in ids(byCustomizationType="FINE_TUNING", byOutputModality="TEXT")
    assert ids(byOutputModality="IMAGE") == []
    said = message(refused("ValidationException", 400, bedrock.list_foundation_models, byOutputModality="SMELL"))
    assert said.startswith("1 validation error detected: Value 'SMELL' at 'byOutputModality' failed to satisfy "
                           "constraint: Member must satisfy enum value set: ["), said


@check(21, "a foundation model comes wrapped in modelDetails, by id and by ARN")
def _():
    found = bedrock.get_foundation_model(modelIdentifier=BASE)["modelDetails"]
    assert found["modelId"] == BASE and found["modelLifecycle"]["status"] == "ACTIVE"
    assert bedrock.get_foundation_model(modelIdentifier=found["modelArn"])["modelDetails"] == found


@check(22, "an installed foundation model is available")
def _():
    found = bedrock.get_foundation_model_availability(modelId=BASE)
    assert found["authorizationStatus"] == "AUTHORIZED" and found["agreementAvailability"]["status"] == "AVAILABLE"


@check(23, "a deployment is made with 202, becomes active, and is found by ARN and by name")
def _():
    reply = bedrock.create_custom_model_deployment(modelDeploymentName="chat", modelArn=made["model"])
    assert status(reply) == 202
    made["deployment"] = reply["customModelDeploymentArn"]
    get = lambda: bedrock.get_custom_model_deployment(customModelDeploymentIdentifier="chat")
    assert poll(get, "status", ("Creating",))["status"] == "Active"
    by_arn = bedrock.get_custom_model_deployment(customModelDeploymentIdentifier=made["deployment"])
    assert by_arn["modelDeploymentName"] == "chat" and by_arn["modelArn"] == made["model"]
    listed = bedrock.list_custom_model_deployments(modelArnEquals=made["model"])["modelDeploymentSummaries"]
    assert [one["customModelDeploymentArn"] for one in listed] == [made["deployment"]]


@check(24, "a taken deployment name is a ValidationException, for there is no conflict to raise")
def _():
    arguments = dict(modelDeploymentName="chat", modelArn=made["model"])
    refused("ValidationException", 400, bedrock.create_custom_model_deployment, **arguments)


@check(25, "a model that is served cannot be deleted")
def _():
    refused("ConflictException", 400, bedrock.delete_custom_model, modelIdentifier=made["model"])


@check(26, "Converse answers through a deployment's ARN and counts tokens")
def _():
    said = runtime.converse(
        modelId=made["deployment"],
        messages=[{"role": "user", "content": [{"text": "colour 3"}]}],
        inferenceConfig={"maxTokens": 8, "temperature": 0.0},
    )
    assert said["output"]["message"]["role"] == "assistant" and said["stopReason"] in ("end_turn", "max_tokens")
    assert said["usage"]["totalTokens"] == said["usage"]["inputTokens"] + said["usage"]["outputTokens"]


@check(27, "InvokeModel answers without a content type, with its counts in headers")
def _():
    body = json.dumps({"prompt": "colour 3", "max_gen_len": 8, "temperature": 0})
    reply = runtime.invoke_model(modelId=made["deployment"], body=body)
    assert reply["contentType"] == "application/json"
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    answer = json.loads(reply["body"].read())
    assert answer["prompt_token_count"] == int(headers["x-amzn-bedrock-input-token-count"])


@check(28, "streams say piece by piece what the whole answers say")
def _():
    messages = [{"role": "user", "content": [{"text": "colour 3"}]}]
    asked = dict(modelId=made["deployment"], messages=messages, inferenceConfig={"maxTokens": 8, "temperature": 0.0})
    whole = runtime.converse(**asked)
    events = list(runtime.converse_stream(**asked)["stream"])
    text = "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)
    assert text == whole["output"]["message"]["content"][0]["text"], (text, whole)
    assert events[0] == {"messageStart": {"role": "assistant"}}, events
    assert events[-2] == {"messageStop": {"stopReason": whole["stopReason"]}}, events
    assert events[-1]["metadata"]["usage"] == whole["usage"], events
    body = json.dumps({"prompt": "colour 3", "max_gen_len": 8, "temperature": 0})
    whole = json.loads(runtime.invoke_model(modelId=made["deployment"], body=body)["body"].read())
    reply = runtime.invoke_model_with_response_stream(modelId=made["deployment"], body=body)
    assert reply["contentType"] == "application/json", reply
    chunks = [json.loads(event["chunk"]["bytes"]) for event in reply["body"]]
    assert "".join(chunk["generation"] for chunk in chunks) == whole["generation"], (chunks, whole)
    assert chunks[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == whole["generation_token_count"]
    counted = runtime.count_tokens(modelId=BASE, input={"invokeModel": {"body": body}})
    assert counted["inputTokens"] == whole["prompt_token_count"], (counted, whole)


@check(29, "provisioned throughput comes into service and stands in the list whose path has an s")
def _():
    reply = bedrock.create_provisioned_model_throughput(provisionedModelName="p", modelId=BASE, modelUnits=1)
    assert status(reply) == 201
    arn = reply["provisionedModelArn"]
    get = lambda: bedrock.get_provisioned_model_throughput(provisionedModelId=arn)
    assert poll(get, "status", ("Creating",))["status"] == "InService"
    listed = bedrock.list_provisioned_model_throughputs()["provisionedModelSummaries"]
    assert [one["provisionedModelArn"] for one in listed] == [arn]
    bedrock.update_provisioned_model_throughput(provisionedModelId="p", desiredProvisionedModelName="q")
    bedrock.delete_provisioned_model_throughput(provisionedModelId="q")
    refused("ResourceNotFoundException", 404, bedrock.get_provisioned_model_throughput, provisionedModelId=arn)


@check(30, "a wrong secret, a clock six minutes off and a wrong bearer key are 403; a right bearer key is enough")
def _():
    wrong = boto3.client("bedrock", aws_secret_access_key="wrong", aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"])
    refused("InvalidSignatureException", 403, wrong.list_custom_models)
    clock = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *a, **k: clock(*a, **k) - datetime.timedelta(minutes=6)
    try:
        refused("InvalidSignatureException", 403, bedrock.list_custom_models)
    finally:
        botocore.auth.get_current_datetime = clock
    os.environ["AWS_BEARER_TOKEN_BEDROCK"] = os.environ["TUNESMITH_TEST_BEARER_KEY"]
    assert len(boto3.client("bedrock").list_custom_models()["modelSummaries"]) >= 1
    os.environ["AWS_BEARER_TOKEN_BEDROCK"] = "wrong"
    refused("AccessDeniedException", 403, boto3.client("bedrock").list_custom_models)
    del os.environ["AWS_BEARER_TOKEN_BEDROCK"]


@check(31, "what was made is deleted, jobs stay, and every reply has a request id")
def _():
    bedrock.delete_custom_model_deployment(customModelDeploymentIdentifier=made["deployment"])
    reply = bedrock.delete_custom_model(modelIdentifier=made["model"])
    assert status(reply) == 200 and re.fullmatch("[0-9a-f-]{36}", reply["ResponseMetadata"]["RequestId"])
    refused("ResourceNotFoundException", 404, bedrock.get_custom_model, modelIdentifier=made["model"])
    assert get_job(made["job"])["status"] == "Completed"


print(f"{len(checks)} checks hold")
assert len(checks) == 31
