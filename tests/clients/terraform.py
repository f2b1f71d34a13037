"""The calls that Terraform's AWS provider makes (hashicorp/terraform-provider-aws, internal/service/bedrock), in its
order and with its own conditions: what it would take for drift, for a failure or for a thing that is gone.

Endpoints and keys come from the environment that tests/clients/mod.rs sets.
"""

import json
import time
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

BASE = "tunesmith.starter-v1:0"
bedrock = boto3.client("bedrock")
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))

s3.create_bucket(Bucket="terraform")
lines = [{"prompt": f"colour {n % 7}", "completion": ["red", "blue", "green"][n % 3]} for n in range(32)]
s3.put_object(Bucket="terraform", Key="train.jsonl", Body="".join(json.dumps(line) + "\n" for line in lines))


def gone(call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"] == "ResourceNotFoundException"
    return False


def wait(get, pending, target):
    """The provider's state waiter: any state that is neither is an error."""
    begun = time.monotonic()
    while True:
        found = get()
        if found["status"] in target:
            return found
        assert found["status"] in pending, f"unexpected state {found['status']}, wanted {target}"
        assert time.monotonic() - begun < 600, found
        time.sleep(0.1)


class CustomModel:
    """resource "aws_bedrock_custom_model": custom_model.go."""

    def __init__(self, name, hyperparameters, tags):
        self.base = bedrock.get_foundation_model(modelIdentifier=BASE)["modelDetails"]["modelArn"]
        self.name, self.hyperparameters, self.tags = name, hyperparameters, tags

    def job(self):
        return bedrock.get_model_customization_job(jobIdentifier=self.arn)

    def create(self):
        tags = [{"key": key, "value": value} for key, value in self.tags.items()]
        self.arn = bedrock.create_model_customization_job(
            baseModelIdentifier=self.base,
            clientRequestToken=str(uuid.uuid4()),
            customModelName=self.name,
            hyperParameters=self.hyperparameters,
            jobName=f"job-{self.name}",
            customizationType="FINE_TUNING",
            outputDataConfig={"s3Uri": "s3://terraform/output/"},
            roleArn="arn:aws:iam::000000000000:role/terraform",
            trainingDataConfig={"s3Uri": "s3://terraform/train.jsonl"},
            jobTags=tags,
            customModelTags=tags,
        )["jobArn"]
        self.no_drift(self.job())

    def no_drift(self, job):
        """Create reads the job at once; anything it did not configure must not be there."""
        assert job["customizationType"], "a computed attribute must be known after apply"
        assert job["jobStatus" if "jobStatus" in job else "status"]
        assert "validationDataConfig" not in job and "vpcConfig" not in job and "outputModelKmsKeyArn" not in job
        assert job["hyperParameters"] == self.hyperparameters, "an extra key would replace the job"
        assert job["baseModelArn"] == self.base, job
        assert job["jobName"] == f"job-{self.name}" and job["outputModelName"] == self.name
        assert job["outputDataConfig"] == {"s3Uri": "s3://terraform/output/"}, "not even a slash may differ"
        assert job["trainingDataConfig"] == {"s3Uri": "s3://terraform/train.jsonl"}
        assert job["roleArn"] == "arn:aws:iam::000000000000:role/terraform"

    def read(self):
        """None: the provider takes it out of its state."""
        job = self.job()
        if job["status"] == "Stopped":
            return None
        self.no_drift(job)
        if job["status"] == "Completed":
            model = bedrock.get_custom_model(modelIdentifier=job["outputModelArn"])
            assert "validationMetrics" not in model or model["validationMetrics"] == []
            assert model["trainingMetrics"]["trainingLoss"] > 0
        else:
            assert "outputModelArn" not in job, "custom_model_arn stays unknown until the job is completed"
        listed = bedrock.list_tags_for_resource(resourceARN=self.arn)["tags"]
        assert {tag["key"]: tag["value"] for tag in listed} == self.tags, listed
        return job

    def update_tags(self, tags):
        removed = [key for key in self.tags if key not in tags]
        changed = [{"key": key, "value": value} for key, value in tags.items() if self.tags.get(key) != value]
        if removed:
            bedrock.untag_resource(resourceARN=self.arn, tagKeys=removed)
        if changed:
            bedrock.tag_resource(resourceARN=self.arn, tags=changed)
        self.tags = tags

    def destroy(self):
        job = self.job()
        if job["status"] == "InProgress":
            bedrock.stop_model_customization_job(jobIdentifier=self.arn)
            wait(self.job, pending=("Stopping",), target=("Stopped",))
        if "outputModelArn" in job:
            bedrock.delete_custom_model(modelIdentifier=job["outputModelArn"])


def throughput(model_arn):
    """resource "aws_bedrock_provisioned_model_throughput": provisioned_model_throughput.go."""
    arn = bedrock.create_provisioned_model_throughput(
        clientRequestToken=str(uuid.uuid4()),
        modelId=model_arn,
        modelUnits=1,
        provisionedModelName="terraform-throughput",
        tags=[{"key": "by", "value": "terraform"}],
    )["provisionedModelArn"]

    def get():
        return bedrock.get_provisioned_model_throughput(provisionedModelId=arn)

    found = wait(get, pending=("Creating",), target=("InService",))
    assert found["provisionedModelName"] == "terraform-throughput" and found["modelUnits"] == 1, found
    assert found["modelArn"] == model_arn and "commitmentDuration" not in found, found
    listed = bedrock.list_tags_for_resource(resourceARN=arn)["tags"]
    assert listed == [{"key": "by", "value": "terraform"}], listed
    bedrock.delete_provisioned_model_throughput(provisionedModelId=arn)
    assert gone(bedrock.get_provisioned_model_throughput, provisionedModelId=arn)


# data "aws_bedrock_foundation_models" and data "aws_bedrock_foundation_model".
for summary in bedrock.list_foundation_models()["modelSummaries"]:
    details = bedrock.get_foundation_model(modelIdentifier=summary["modelId"])["modelDetails"]
    for name in ("modelArn", "modelId", "modelName", "providerName", "inputModalities", "outputModalities"):
        assert details[name] == summary[name], name
    assert isinstance(details["responseStreamingSupported"], bool)

# Apply, plan again while it runs, wait until it is done, plan again: no drift at any time.
model = CustomModel("tf-model", {"epochCount": "1", "batchSize": "8", "learningRate": "0.005"}, {"by": "terraform"})
model.create()
assert model.read() is not None
wait(model.job, pending=("InProgress",), target=("Completed",))
job = model.read()
model.update_tags({"team": "blue", "stage": "test"})
model.read()

# data "aws_bedrock_custom_model" and data "aws_bedrock_custom_models".
found = bedrock.get_custom_model(modelIdentifier=job["outputModelArn"])
assert found["hyperParameters"] == model.hyperparameters and found["jobArn"] == model.arn
tags = bedrock.list_tags_for_resource(resourceARN=found["modelArn"])["tags"]
assert tags == [{"key": "by", "value": "terraform"}], "tags of the job are not those of the model"
assert bedrock.list_tags_for_resource(resourceARN=model.arn)["tags"] != tags
listed = bedrock.get_paginator("list_custom_models").paginate().build_full_result()["modelSummaries"]
assert [(one["modelArn"], one["modelName"]) for one in listed] == [(found["modelArn"], "tf-model")]

throughput(found["modelArn"])
model.destroy()
assert gone(bedrock.get_custom_model, modelIdentifier=found["modelArn"])

# Destroyed while it runs: only Stopping may be seen on the way to Stopped, and then it counts as gone.
running = CustomModel("tf-running", {"epochCount": "1000", "batchSize": "8"}, {})
running.create()
running.destroy()
assert running.read() is None
assert bedrock.list_custom_models()["modelSummaries"] == []

print("terraform's calls hold")
