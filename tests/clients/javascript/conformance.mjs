// Thirty things that clients rely on, by the unmodified AWS SDK for JavaScript v3: the control client over HTTP/1.1,
// the runtime client over h2c with prior knowledge, which is its default. conformance.py checks the same thirty by
// boto3; the numbers are the same in both. This SDK refuses times that are not RFC 3339.
//
// Endpoints and keys come from the environment that tests/clients/mod.rs sets.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import * as control from "@aws-sdk/client-bedrock";
import * as asked from "@aws-sdk/client-bedrock-runtime";
import { CreateBucketCommand, GetObjectCommand, PutObjectCommand, S3Client } from "@aws-sdk/client-s3";

const BASE = "tunesmith.starter-v1:0";
const env = process.env;
const keys = { accessKeyId: env.AWS_ACCESS_KEY_ID, secretAccessKey: env.AWS_SECRET_ACCESS_KEY };
const common = { region: "us-east-1", maxAttempts: 1, credentials: keys };
const bedrock = new control.BedrockClient({ ...common, endpoint: env.AWS_ENDPOINT_URL_BEDROCK });
const runtime = new asked.BedrockRuntimeClient({ ...common, endpoint: env.AWS_ENDPOINT_URL_BEDROCK_RUNTIME });
const s3 = new S3Client({ ...common, endpoint: env.AWS_ENDPOINT_URL_S3, forcePathStyle: true });

/** Sends an operation by name. */
const call = (name, input = {}, client = bedrock) => client.send(new control[`${name}Command`](input));
const ask = (name, input) => runtime.send(new asked[`${name}Command`](input));

// The last reply as it came over the wire.
let last;
const remember = (client) =>
  client.middlewareStack.add(
    (next) => async (args) => {
      const result = await next(args);
      last = result.response;
      return result;
    },
    { step: "deserialize", priority: "low", name: "remember" },
  );
remember(bedrock);
remember(runtime);

async function refused(name, status, promise) {
  try {
    await promise;
  } catch (error) {
    assert.equal(error.name, name, `${error.name}: ${error.message}`);
    assert.equal(error.$metadata.httpStatusCode, status);
    assert.match(error.$metadata.requestId, /^[0-9a-f-]{36}$/);
    return error;
  }
  assert.fail(`${name} was expected`);
}

async function poll(get, member, waiting) {
  const begun = Date.now();
  for (;;) {
    const found = await get();
    if (!waiting.includes(found[member])) return found;
    assert(Date.now() - begun < 300_000, JSON.stringify(found));
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const checks = [];
async function check(number, name, body) {
  assert.equal(number, checks.length + 1, `check ${number} is out of order`);
  await body();
  checks.push(name);
  console.log(`${String(number).padStart(2)} ${name}`);
}

const request = (name, changes = {}) => ({
  jobName: name,
  customModelName: `model-${name.replaceAll(/[+.]/g, "-")}`,
  roleArn: "arn:aws:iam::000000000000:role/tuner",
  baseModelIdentifier: BASE,
  clientRequestToken: randomUUID(),
  hyperParameters: { epochCount: "1", batchSize: "8", learningRate: "1e-3" },
  trainingDataConfig: { s3Uri: "s3://conformance/data/train.jsonl" },
  outputDataConfig: { s3Uri: "s3://conformance/output" },
  ...changes,
});
const getJob = (jobIdentifier) => call("GetModelCustomizationJob", { jobIdentifier });

await s3.send(new CreateBucketCommand({ Bucket: "conformance" }));
const lines = Array.from({ length: 32 }, (_, n) =>
  JSON.stringify({ prompt: `colour ${n % 7}`, completion: ["red", "blue", "green"][n % 3] }),
);
await s3.send(new PutObjectCommand({ Bucket: "conformance", Key: "data/train.jsonl", Body: `${lines.join("\n")}\n` }));
const first = request("first", { jobTags: [{ key: "team", value: "blue" }] });
const made = {};

await check(1, "a job is created with 201 and an ARN that holds its base model's id", async () => {
  const reply = await call("CreateModelCustomizationJob", first);
  made.job = reply.jobArn;
  assert.equal(reply.$metadata.httpStatusCode, 201);
  assert.match(made.job, new RegExp(`^arn:aws:bedrock:us-east-1:\\d{12}:model-customization-job/${BASE}/[a-z0-9]{12}$`));
});

await check(2, "the same token is the same job, and with another body a ConflictException of status 400", async () => {
  assert.equal((await call("CreateModelCustomizationJob", first)).jobArn, made.job);
  const other = { ...first, customModelName: "other" };
  await refused("ConflictException", 400, call("CreateModelCustomizationJob", other));
});

await check(3, "a taken job name is refused with the sentence that clients compare", async () => {
  const again = { ...first, clientRequestToken: "another" };
  const error = await refused("ValidationException", 400, call("CreateModelCustomizationJob", again));
  assert.equal(error.message, "The provided job name is currently in use.");
});

await check(4, "a job is found by its ARN, whose slashes travel encoded, and by its name", async () => {
  assert.equal((await getJob(made.job)).jobName, "first");
  assert.equal((await getJob("first")).jobArn, made.job);
});

await check(5, "hyperparameters come back exactly as they were sent", async () => {
  assert.deepEqual((await getJob("first")).hyperParameters, first.hyperParameters);
});

await check(6, "members that do not apply are left out", async () => {
  const slow = request("slow", { hyperParameters: { epochCount: "1000", batchSize: "8" } });
  made.slow = (await call("CreateModelCustomizationJob", slow)).jobArn;
  const found = await getJob("slow");
  for (const name of ["validationDataConfig", "vpcConfig", "outputModelArn", "endTime", "failureMessage"]) {
    assert.equal(found[name], undefined, name);
  }
  assert.equal(found.customizationType, "FINE_TUNING");
  assert.equal(found.status, "InProgress");
});

await check(7, "times are texts of RFC 3339 with milliseconds and Z", async () => {
  const found = await getJob("first");
  assert(found.creationTime instanceof Date && Math.abs(Date.now() - found.creationTime) < 600_000);
  assert(found.lastModifiedTime instanceof Date);
});

await check(8, "a name with a plus in it travels", async () => {
  await call("CreateModelCustomizationJob", request("a+b.c"));
  assert.equal((await getJob("a+b.c")).jobName, "a+b.c");
  const found = await call("ListModelCustomizationJobs", { nameContains: "a+b" });
  assert.deepEqual(found.modelCustomizationJobSummaries.map((job) => job.jobName), ["a+b.c"]);
});

await check(9, "a stop is visible when its call returns, and ends without a model", async () => {
  await call("StopModelCustomizationJob", { jobIdentifier: made.slow });
  assert(["Stopping", "Stopped"].includes((await getJob("slow")).status));
  const ended = await poll(() => getJob("slow"), "status", ["Stopping"]);
  assert.equal(ended.status, "Stopped");
  assert(ended.outputModelArn === undefined && ended.endTime instanceof Date);
});

await check(10, "a job that has ended cannot be stopped", async () => {
  await refused("ConflictException", 400, call("StopModelCustomizationJob", { jobIdentifier: made.slow }));
});

await check(11, "a job completes and names its model", async () => {
  const ended = await poll(() => getJob("first"), "status", ["InProgress"]);
  assert.equal(ended.status, "Completed", ended.failureMessage);
  made.model = ended.outputModelArn;
  assert.match(made.model, new RegExp(`^arn:aws:bedrock:us-east-1:\\d{12}:custom-model/${BASE}/[a-z0-9]{12}$`));
  assert(ended.trainingMetrics.trainingLoss > 0);
});

await check(12, "the metrics lie where AWS puts them", async () => {
  const folder = `output/model-customization-job-${made.job.slice(-12)}`;
  const Key = `${folder}/training_artifacts/step_wise_training_metrics.csv`;
  const found = await s3.send(new GetObjectCommand({ Bucket: "conformance", Key }));
  assert.match(await found.Body.transformToString(), /^step_number,epoch_number,training_loss,perplexity/);
});

await check(13, "a model is found by ARN and by name, active, with the job that made it", async () => {
  for (const modelIdentifier of [made.model, "model-first"]) {
    const model = await call("GetCustomModel", { modelIdentifier });
    assert.deepEqual([model.modelArn, model.jobArn], [made.model, made.job]);
    assert.deepEqual([model.modelStatus, model.customizationType], ["Active", "FINE_TUNING"]);
  }
});

await check(14, "pages show everything once, newest first, and the last has no token", async () => {
  const names = [];
  let tokens = 0;
  for await (const page of control.paginateListModelCustomizationJobs({ client: bedrock, pageSize: 1 }, {})) {
    names.push(...page.modelCustomizationJobSummaries.map((job) => job.jobName));
    tokens += page.nextToken === undefined ? 0 : 1;
  }
  assert.deepEqual(names, ["a+b.c", "slow", "first"]);
  assert.equal(tokens, 2);
});

await check(15, "a page token belongs to its filters, and rubbish is none", async () => {
  const { nextToken } = await call("ListModelCustomizationJobs", { maxResults: 1 });
  const other = { maxResults: 1, statusEquals: "Completed", nextToken };
  await refused("ValidationException", 400, call("ListModelCustomizationJobs", other));
  await refused("ValidationException", 400, call("ListModelCustomizationJobs", { nextToken: "rubbish" }));
});

await check(16, "listings are filtered by state, name and time, and sorted", async () => {
  const names = async (input) =>
    (await call("ListModelCustomizationJobs", input)).modelCustomizationJobSummaries.map((job) => job.jobName);
  assert.deepEqual(await names({ statusEquals: "Stopped" }), ["slow"]);
  assert.deepEqual(await names({ nameContains: "FIRST" }), ["first"]);
  assert.equal((await names({ sortBy: "CreationTime", sortOrder: "Ascending" }))[0], "first");
  const at = (await getJob("slow")).creationTime.getTime();
  const around = { creationTimeAfter: new Date(at - 1), creationTimeBefore: new Date(at + 1) };
  assert.deepEqual(await names(around), ["slow"]);
  assert.notEqual((await names({ creationTimeAfter: new Date(at) })).at(-1), "slow", "times are strict");
});

await check(17, "tags are listed, replaced and removed by resourceARN", async () => {
  const resourceARN = made.job;
  await call("TagResource", { resourceARN, tags: [{ key: "team", value: "red" }, { key: "x", value: "" }] });
  await call("UntagResource", { resourceARN, tagKeys: ["x", "never-there"] });
  assert.deepEqual((await call("ListTagsForResource", { resourceARN })).tags, [{ key: "team", value: "red" }]);
  assert.deepEqual((await call("ListTagsForResource", { resourceARN: made.model })).tags, []);
});

await check(18, "fifty-one tags are too many, counting those already there", async () => {
  const tags = Array.from({ length: 50 }, (_, n) => ({ key: `k${n}`, value: "v" }));
  const resourceARN = made.job;
  const error = await refused("TooManyTagsException", 400, call("TagResource", { resourceARN, tags }));
  assert.equal(error.resourceName, made.job);
  await call("TagResource", { resourceARN, tags: tags.slice(0, 49) });
  assert.equal((await call("ListTagsForResource", { resourceARN })).tags.length, 50);
});

await check(19, "what is not there is a ResourceNotFoundException of status 404", async () => {
  const gone = `${made.job.slice(0, -12)}absentabsent`;
  await refused("ResourceNotFoundException", 404, call("ListTagsForResource", { resourceARN: gone }));
  await refused("ResourceNotFoundException", 404, getJob(gone));
  await refused("ResourceNotFoundException", 404, call("GetCustomModel", { modelIdentifier: "no-such-model" }));
});

await check(20, "foundation models are filtered, and a value outside an enum is named", async () => {
  const ids = async (input) => (await call("ListFoundationModels", input)).modelSummaries.map((one) => one.modelId);
  assert((await ids({ byCustomizationType: "FINE_TUNING", byOutputModality: "TEXT" })).includes(BASE));
  assert.deepEqual(await ids({ byOutputModality: "IMAGE" }), []);
  const bad = call("ListFoundationModels", { byOutputModality: "SMELL" });
  const error = await refused("ValidationException", 400, bad);
  const said = "1 validation error detected: Value 'SMELL' at 'byOutputModality' failed to satisfy constraint: Member " +
    "must satisfy enum value set: [";
  assert(error.message.startsWith(said), error.message);
});

await check(21, "a foundation model comes wrapped in modelDetails, by id and by ARN", async () => {
  const { modelDetails } = await call("GetFoundationModel", { modelIdentifier: BASE });
  assert.deepEqual([modelDetails.modelId, modelDetails.modelLifecycle.status], [BASE, "ACTIVE"]);
  const byArn = await call("GetFoundationModel", { modelIdentifier: modelDetails.modelArn });
  assert.deepEqual(byArn.modelDetails, modelDetails);
});

await check(22, "an installed foundation model is available", async () => {
  const found = await call("GetFoundationModelAvailability", { modelId: BASE });
  assert.deepEqual([found.authorizationStatus, found.agreementAvailability.status], ["AUTHORIZED", "AVAILABLE"]);
});

await check(23, "a deployment is made with 202, becomes active, and is found by ARN and by name", async () => {
  const wanted = { modelDeploymentName: "chat", modelArn: made.model };
  const reply = await call("CreateCustomModelDeployment", wanted);
  assert.equal(reply.$metadata.httpStatusCode, 202);
  made.deployment = reply.customModelDeploymentArn;
  const get = (customModelDeploymentIdentifier) =>
    call("GetCustomModelDeployment", { customModelDeploymentIdentifier });
  assert.equal((await poll(() => get("chat"), "status", ["Creating"])).status, "Active");
  const byArn = await get(made.deployment);
  assert.deepEqual([byArn.modelDeploymentName, byArn.modelArn], ["chat", made.model]);
  const listed = await call("ListCustomModelDeployments", { modelArnEquals: made.model });
  const arns = listed.modelDeploymentSummaries.map((one) => one.customModelDeploymentArn);
  assert.deepEqual(arns, [made.deployment]);
});

await check(24, "a taken deployment name is a ValidationException, for there is no conflict to raise", async () => {
  const taken = { modelDeploymentName: "chat", modelArn: made.model };
  await refused("ValidationException", 400, call("CreateCustomModelDeployment", taken));
});

await check(25, "a model that is served cannot be deleted", async () => {
  await refused("ConflictException", 400, call("DeleteCustomModel", { modelIdentifier: made.model }));
});

await check(26, "Converse answers through a deployment's ARN and counts tokens", async () => {
  const said = await ask("Converse", {
    modelId: made.deployment,
    messages: [{ role: "user", content: [{ text: "colour 3" }] }],
    inferenceConfig: { maxTokens: 8, temperature: 0 },
  });
  assert.equal(said.output.message.role, "assistant");
  assert(["end_turn", "max_tokens"].includes(said.stopReason));
  assert.equal(said.usage.totalTokens, said.usage.inputTokens + said.usage.outputTokens);
  assert.equal(runtime.config.requestHandler.metadata.handlerProtocol, "h2", "the runtime client spoke h2c");
});

await check(27, "InvokeModel answers without a content type, with its counts in headers", async () => {
  const body = JSON.stringify({ prompt: "colour 3", max_gen_len: 8, temperature: 0 });
  const reply = await ask("InvokeModel", { modelId: made.deployment, body });
  assert.equal(reply.contentType, "application/json");
  const answer = JSON.parse(reply.body.transformToString());
  assert.equal(answer.prompt_token_count, Number(last.headers["x-amzn-bedrock-input-token-count"]));
});

await check(28, "streams say piece by piece what the whole answers say", async () => {
  const asked = {
    modelId: made.deployment,
    messages: [{ role: "user", content: [{ text: "colour 3" }] }],
    inferenceConfig: { maxTokens: 8, temperature: 0 },
  };
  const whole = await ask("Converse", asked);
  const events = [];
  for await (const event of (await ask("ConverseStream", asked)).stream) events.push(event);
  const text = events.map((event) => event.contentBlockDelta?.delta.text ?? "").join("");
  assert.equal(text, whole.output.message.content[0].text);
  assert.equal(events.at(-2).messageStop.stopReason, whole.stopReason);
  assert.deepEqual(events.at(-1).metadata.usage, whole.usage);
  const body = JSON.stringify({ prompt: "colour 3", max_gen_len: 8, temperature: 0 });
  const answer = JSON.parse((await ask("InvokeModel", { modelId: made.deployment, body })).body.transformToString());
  const reply = await ask("InvokeModelWithResponseStream", { modelId: made.deployment, body });
  let said = "";
  for await (const event of reply.body) said += JSON.parse(new TextDecoder().decode(event.chunk.bytes)).generation;
  assert.equal(said, answer.generation);
});

await check(29, "provisioned throughput comes into service and stands in the list whose path has an s", async () => {
  const wanted = { provisionedModelName: "p", modelId: BASE, modelUnits: 1 };
  const reply = await call("CreateProvisionedModelThroughput", wanted);
  assert.equal(reply.$metadata.httpStatusCode, 201);
  const arn = reply.provisionedModelArn;
  const get = () => call("GetProvisionedModelThroughput", { provisionedModelId: arn });
  assert.equal((await poll(get, "status", ["Creating"])).status, "InService");
  const listed = (await call("ListProvisionedModelThroughputs")).provisionedModelSummaries;
  assert.deepEqual(listed.map((one) => one.provisionedModelArn), [arn]);
  const renamed = { provisionedModelId: "p", desiredProvisionedModelName: "q" };
  await call("UpdateProvisionedModelThroughput", renamed);
  await call("DeleteProvisionedModelThroughput", { provisionedModelId: "q" });
  await refused("ResourceNotFoundException", 404, get());
});

await check(
  30,
  "a wrong secret, a clock six minutes off and a wrong bearer key are 403; a right bearer key is enough",
  async () => {
    const endpoint = env.AWS_ENDPOINT_URL_BEDROCK;
    const list = (more) => call("ListCustomModels", {}, new control.BedrockClient({ ...common, endpoint, ...more }));
    const wrong = { credentials: { ...keys, secretAccessKey: "wrong" } };
    await refused("InvalidSignatureException", 403, list(wrong));
    await refused("InvalidSignatureException", 403, list({ systemClockOffset: -360_000 }));
    const bearer = (token) => ({ token: { token }, authSchemePreference: ["httpBearerAuth"] });
    await refused("AccessDeniedException", 403, list(bearer("wrong")));
    assert((await list(bearer(env.TUNESMITH_TEST_BEARER_KEY))).modelSummaries.length >= 1);
  },
);

await check(31, "what was made is deleted, jobs stay, and every reply has a request id", async () => {
  await call("DeleteCustomModelDeployment", { customModelDeploymentIdentifier: made.deployment });
  const reply = await call("DeleteCustomModel", { modelIdentifier: made.model });
  assert.equal(reply.$metadata.httpStatusCode, 200);
  assert.match(reply.$metadata.requestId, /^[0-9a-f-]{36}$/);
  await refused("ResourceNotFoundException", 404, call("GetCustomModel", { modelIdentifier: made.model }));
  assert.equal((await getJob(made.job)).status, "Completed");
});

console.log(`${checks.length} checks hold`);
assert.equal(checks.length, 31);
process.exit(0);
