#!/usr/bin/env bash
# The whole journey with the unmodified AWS CLI. Endpoints and keys come from the environment.
set -euo pipefail
cd "$TUNESMITH_TEST_SCRATCH"
base=tunesmith.starter-v1:0
export AWS_PAGER=

for n in $(seq 32); do
  echo "{\"prompt\": \"number $n\", \"completion\": \"answer $((n % 3))\"}"
done > train.jsonl
aws s3 mb s3://cli-journey
aws s3 cp --no-progress train.jsonl s3://cli-journey/train.jsonl

aws bedrock list-foundation-models --by-customization-type FINE_TUNING --query 'modelSummaries[].modelId' | grep -q "$base"

job=$(aws bedrock create-model-customization-job \
  --job-name cli-job --custom-model-name cli-model --role-arn arn:aws:iam::000000000000:role/tuner \
  --base-model-identifier "$base" --hyper-parameters epochCount=1,batchSize=8 \
  --training-data-config s3Uri=s3://cli-journey/train.jsonl --output-data-config s3Uri=s3://cli-journey/out \
  --query jobArn --output text)

status() { aws bedrock get-model-customization-job --job-identifier "$1" --query status --output text; }
until [ "$(status "$job")" != InProgress ]; do sleep 0.5; done
[ "$(status cli-job)" = Completed ] || { aws bedrock get-model-customization-job --job-identifier "$job"; exit 1; }

aws s3 cp --no-progress --recursive "s3://cli-journey/out/model-customization-job-${job##*/}/" out
head -n 1 out/training_artifacts/step_wise_training_metrics.csv | grep -qx 'step_number,epoch_number,training_loss,perplexity'
test -s out/adapter/adapter_model.safetensors

model=$(aws bedrock get-custom-model --model-identifier cli-model --query modelArn --output text)
aws bedrock-runtime converse --model-id "$model" --inference-config maxTokens=4 \
  --messages '[{"role": "user", "content": [{"text": "number 3"}]}]' --query stopReason
echo '{"prompt": "number 3", "max_gen_len": 4}' > body.json
aws bedrock-runtime invoke-model --model-id cli-model --body fileb://body.json answer.json
grep -q '"generation"' answer.json

aws bedrock delete-custom-model --model-identifier "$model"
if aws bedrock get-custom-model --model-identifier cli-model 2> refusal.txt; then exit 1; fi
grep -q ResourceNotFoundException refusal.txt
echo "the journey is complete"
