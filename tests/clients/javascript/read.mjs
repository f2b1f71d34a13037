// Reads recorded replies, one JSON object a line, by the deserialisers of the unmodified AWS SDK for JavaScript v3:
// what the wire says is what the caller gets, nothing is dropped on the way, and an error has its own class and name.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as control from "@aws-sdk/client-bedrock";
import * as asked from "@aws-sdk/client-bedrock-runtime";

// Every label of a path; a deserialiser sees none of them.
const labels = Object.fromEntries(
  ["modelIdentifier", "modelId", "jobIdentifier", "customModelDeploymentIdentifier", "provisionedModelId"].map((name) => [
    name,
    "any",
  ]),
);
const input = { ...labels, body: "{}", messages: [] };
let reply;
const requestHandler = {
  handle: async () => ({
    response: { statusCode: reply.status, headers: reply.headers, body: Buffer.from(reply.body) },
  }),
};
const common = {
  region: "us-east-1",
  endpoint: "http://127.0.0.1:1",
  maxAttempts: 1,
  credentials: { accessKeyId: "any", secretAccessKey: "any" },
  requestHandler,
};
const clients = [
  [control, new control.BedrockClient(common), control.BedrockServiceException],
  [asked, new asked.BedrockRuntimeClient(common), asked.BedrockRuntimeServiceException],
];

/** All that is on the wire is in what was read. */
function same(read, wire, place) {
  if (wire === null || typeof wire !== "object") {
    if (read instanceof Date) return assert.equal(read.getTime(), new Date(wire).getTime(), place);
    return assert.deepEqual(read, wire, place);
  }
  assert.equal(Array.isArray(read), Array.isArray(wire), place);
  if (Array.isArray(wire)) assert.equal(read.length, wire.length, place);
  for (const name of Object.keys(wire)) same(read?.[name], wire[name], `${place}.${name}`);
}

const counts = {};
for (const line of readFileSync(process.argv[2], "utf8").split("\n").filter(Boolean)) {
  reply = JSON.parse(line);
  const { operation, status, headers, body } = reply;
  const place = `${operation} ${status} ${body.slice(0, 300)}`;
  const [module, client, Exception] = clients.find(([module]) => `${operation}Command` in module);
  const count = (counts[operation] ??= { read: 0, refused: 0 });
  let output, error;
  try {
    output = await client.send(new module[`${operation}Command`](input));
  } catch (thrown) {
    error = thrown;
  }
  const { requestId, httpStatusCode } = (output ?? error).$metadata ?? {};
  assert.equal(httpStatusCode, status, `${place}: ${error}`);
  // What is refused before it is understood has no request id.
  assert.equal(requestId, headers["x-amzn-requestid"], place);
  if (status < 300) {
    assert.equal(error, undefined, `${place}: ${error}`);
    if (operation === "InvokeModel") assert.equal(output.body.transformToString(), body, place);
    else if (body) same(output, JSON.parse(body), operation);
    count.read += 1;
  } else {
    assert(error instanceof Exception, `${place}: ${error}`);
    assert.equal(error.name, headers["x-amzn-errortype"], place);
    assert.equal(error.message, JSON.parse(body).message, place);
    // A fault that the operation is known to have is a class of its own.
    if (error.name in module) assert(error instanceof module[error.name], place);
    count.refused += 1;
  }
}
for (const [operation, { read, refused }] of Object.entries(counts).sort()) console.log(`${read} read, ${refused} refused: ${operation}`);
