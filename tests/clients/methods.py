"""Every tuning method through the API by unmodified boto3: created, trained, asked in both forms, tuned further from
what it left, and brought in again as a model made elsewhere. What does not fit is refused before anything is trained.

Endpoints and keys come from the environment that tests/clients/mod.rs sets.
"""

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

s3.create_bucket(Bucket="methods")
records = [{"prompt": f"colour {n % 7}", "completion": ["red", "blue", "green"][n % 3]} for n in range(32)]
lines = "".join(json.dumps(record) + "\n" for record in records)
s3.put_object(Bucket="methods", Key="train.jsonl", Body=lines)
s3.put_object(Bucket="methods", Key="validation.jsonl", Body="".join(lines.splitlines(True)[:8]))


def create(name, base=BASE, **parameters):
    return bedrock.create_model_customization_job(
        jobName=name,
        customModelName=name,
        roleArn=ROLE,
        baseModelIdentifier=base,
        hyperParameters={"epochCount": "1", "batchSize": "16", "learningRateWarmupSteps": "0", **parameters},
        trainingDataConfig={"s3Uri": "s3://methods/train.jsonl"},
        validationDataConfig={"validators": [{"s3Uri": "s3://methods/validation.jsonl"}]},
        outputDataConfig={"s3Uri": "s3://methods/output"},
    )["jobArn"]


def completed(job):
    while (found := bedrock.get_model_customization_job(jobIdentifier=job))["status"] == "InProgress":
        time.sleep(0.1)
    assert found["status"] == "Completed", found.get("failureMessage")
    return found


def refused(said, name, base=BASE, **parameters):
    try:
        create(name, base, **parameters)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ValidationException", error
        assert said in error.response["Error"]["Message"], error
        return
    raise AssertionError(f"a refusal was expected that says {said}")


def ask(model):
    """Both forms, greedily; the same answer to the same question."""
    said = runtime.converse(
        modelId=model,
        messages=[{"role": "user", "content": [{"text": "colour 3"}]}],
        inferenceConfig={"maxTokens": 8, "temperature": 0},
    )
    assert said["stopReason"] in ("end_turn", "max_tokens"), said
    body = json.dumps({"prompt": "colour 3", "max_gen_len": 8, "temperature": 0})
    answer = json.loads(runtime.invoke_model(modelId=model, body=body)["body"].read())
    text = said["output"]["message"]["content"][0]["text"]
    assert answer["generation"].strip() == text.strip(), (answer, text)
    return text


METHODS = {
    "lora": {},
    "dora": {"tuningMethod": "lora", "dora": "true", "rsLora": "true", "loraDropout": "0.1"},
    "qlora": {},
    "adapter": {"adapterArchitecture": "houlsby", "adapterNonLinearity": "gelu", "adapterReductionFactor": "8"},
    "prefix": {"virtualTokens": "4"},
    "prompt": {"virtualTokens": "4", "virtualTokensInit": "text", "virtualTokensText": "Name a colour."},
    "llama-adapter": {"tuningMethod": "llama_adapter", "adapterLength": "4", "adapterLayers": "2", "learningRate": "0.5"},
    "head": {},
    "full": {},
}
base_says = ask(BASE)
jobs = {
    name: create(name, **{"tuningMethod": name, "learningRate": "0.02", "saveOptimizerState": "true", **options})
    for name, options in METHODS.items()
}
for name, job in jobs.items():
    done = completed(job)
    assert done["trainingMetrics"]["trainingLoss"] > 0 and done["validationMetrics"][0]["validationLoss"] > 0, done
    tuned_says = ask(done["outputModelArn"])
    assert tuned_says != base_says, f"{name} changed nothing: {tuned_says}"

    # From what it left, by its name; a whole model has no adapter to go on from.
    more = {"tuningMethod": "full"} if name == "full" else {"continueOptimizerState": "true"}
    further = completed(create(f"{name}-further", name, **more))
    # A job names the foundation model at the root; its model the parent.
    assert further["baseModelArn"] == done["baseModelArn"], further
    ask(further["outputModelArn"])
    model = bedrock.get_custom_model(modelIdentifier=f"{name}-further")
    assert model["baseModelArn"] == done["outputModelArn"], model
    if name == "full":
        continue

    # Brought in as if another service had made it, it says the same.
    folder = f"s3://methods/output/model-customization-job-{job[-12:]}/adapter"
    brought = bedrock.create_custom_model(
        modelName=f"{name}-brought", modelSourceConfig={"s3DataSource": {"s3Uri": folder}}, roleArn=ROLE
    )["modelArn"]
    while (found := bedrock.get_custom_model(modelIdentifier=brought))["modelStatus"] == "Creating":
        time.sleep(0.1)
    assert found["modelStatus"] == "Active", found
    assert ask(brought) == tuned_says, name
    print(f"{name}: {base_says!r} -> {tuned_says!r}")

# Preferences: an unmodified client learns from them by the same call, and a reward model gives no text.
pairs = [
    {"prompt": f"colour {n % 7}", "chosen": ["red", "blue", "green"][n % 3], "rejected": ["no", "why"][n % 2]}
    for n in range(32)
]
lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
s3.put_object(Bucket="methods", Key="pairs.jsonl", Body=lines)


def prefer(name, base=BASE, **parameters):
    return bedrock.create_model_customization_job(
        jobName=name,
        customModelName=name,
        roleArn=ROLE,
        baseModelIdentifier=base,
        hyperParameters={"epochCount": "2", "batchSize": "16", "learningRateWarmupSteps": "0", **parameters},
        trainingDataConfig={"s3Uri": "s3://methods/pairs.jsonl"},
        validationDataConfig={"validators": [{"s3Uri": "s3://methods/pairs.jsonl"}]},
        outputDataConfig={"s3Uri": "s3://methods/output"},
    )["jobArn"]


def metrics(job):
    key = f"output/model-customization-job-{job[-12:]}/training_artifacts/step_wise_training_metrics.csv"
    text = s3.get_object(Bucket="methods", Key=key)["Body"].read().decode()
    return [dict(zip(text.splitlines()[0].split(","), line.split(","))) for line in text.splitlines()[1:]]


job = prefer("prefers", trainingObjective="dpo", learningRate="0.001")
done = completed(job)
steps = metrics(job)
assert len(steps) == 4, "32 pairs, 16 in a batch, twice"
assert abs(float(steps[0]["training_loss"]) - 0.6931) < 1e-3, steps[0]
assert float(steps[-1]["rewards/margins"]) > float(steps[0]["rewards/margins"]) == 0, steps
assert float(steps[-1]["rewards/accuracies"]) > 0.5, steps
assert done["validationMetrics"][0]["validationLoss"] < 0.6931, done
assert ask(done["outputModelArn"]) is not None
further = completed(prefer("prefers-more", "prefers", trainingObjective="dpo", dpoLoss="ipo"))
ask(further["outputModelArn"])

job = prefer("judge", trainingObjective="reward", learningRate="0.001")
judge = completed(job)
assert float(metrics(job)[-1]["margin"]) > float(metrics(job)[0]["margin"]), metrics(job)
try:
    ask(judge["outputModelArn"])
    raise AssertionError("a reward model gave text")
except ClientError as error:
    assert error.response["Error"]["Code"] == "ValidationException", error
    assert "is a reward model" in error.response["Error"]["Message"], error

refused("dpoBeta is an option of trainingObjective dpo, not of sft", "x", dpoBeta="0.1")
refused("tuningMethod must be lora or qlora, not prefix", "x", trainingObjective="reward", tuningMethod="prefix")
refused("loraRank is an option of tuningMethod lora or qlora, not of prefix", "x", tuningMethod="prefix", loraRank="4")
refused("adapterLayers is 9, but the base model has 4 layers", "x", tuningMethod="llama_adapter", adapterLayers="9")
refused("adapterReductionFactor 129 is more than the model's width of 128", "x", tuningMethod="adapter", adapterReductionFactor="129")
refused("the base model has no target module qkv_proj; it has q_proj", "x", loraTargetModules="qkv_proj")
refused("leave no room for text", "x", tuningMethod="prompt", virtualTokens="1024")
refused("continueOptimizerState goes on with what a custom model's job kept", "x", continueOptimizerState="true")
refused("is an adapter: it is tuned further by the method that made it", "x", "lora", tuningMethod="full")
refused("consists of whole weights, not of an adapter", "x", "full", tuningMethod="lora")
refused("there is no foundation model and no active custom model 'nobody'", "x", "nobody")

# What only the adapter's own files tell fails the job, with a message that says what to do.
job = create("other-rank", "lora", loraRank="4")
while (found := bedrock.get_model_customization_job(jobIdentifier=job))["status"] == "InProgress":
    time.sleep(0.1)
assert found["status"] == "Failed" and "leave tuningMethod and its options out" in found["failureMessage"], found
