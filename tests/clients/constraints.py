"""Every constraint that botocore's service models state, violated one at a time against every served operation.

Requests are written without botocore's own validation, signed, and sent over one kept connection. Each must be
answered 400 ValidationException in a form that botocore's parser reads. The operations are those of /openapi.json,
so a new one is covered as soon as it is served.
"""

import collections
import copy
import http.client
import json
import os
import re
import urllib.parse
import urllib.request

import botocore.session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.parsers import create_parser

# The least number of cases; it only ever rises.
FLOOR = 5000
ENDPOINT = os.environ["AWS_ENDPOINT_URL_BEDROCK"]
KEYS = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
BASE = "tunesmith.starter-v1:0"
ARN = "arn:aws:bedrock:us-east-1:000000000000:"
# Tried in turn wherever a text must match a pattern.
TEXTS = [
    "a", "1", "s3://bucket/key", "v1.0", "arn:aws:iam::000000000000:role/tuner",
    f"arn:aws:bedrock:us-east-1::foundation-model/{BASE}", BASE, ARN + "imported-model/abcdefghijkl",
    ARN + "custom-model/imported/abcdefghijkl", ARN + "custom-model-deployment/abcdefghijkl",
    ARN + "provisioned-model/abcdefghijkl", ARN + "inference-profile/a", ARN + "guardrail/a",
    "arn:aws:lambda:us-east-1:000000000000:function:grade", "000000000000", "application/json",
    "arn:aws:kms:us-east-1:000000000000:key/01234567-0123-0123-0123-0123456789ab", "",
]
WRONG_TEXTS = ["!", "a b", "é", "a!", " "]
JSON_TYPES = {"text": "surprise", "number": 7, "boolean": True, "list": ["surprise"], "object": {"surprise": 1}}
IS = {
    "string": "text", "timestamp": "text", "blob": "text", "boolean": "boolean", "list": "list", "map": "object",
    "structure": "object", **dict.fromkeys(("integer", "long", "float", "double"), "number"),
}

session = botocore.session.get_session()
models = [session.get_service_model(name) for name in ("bedrock", "bedrock-runtime")]


def matches(pattern, text):
    # "^" and "$" inside a pattern are honoured; the whole text must match.
    return re.fullmatch(pattern, text, re.ASCII) is not None


def limits(shape):
    return shape.metadata.get("min"), shape.metadata.get("max")


def valid(shape, seen=()):
    """The least value that the model allows, with every required member."""
    low, _ = limits(shape)
    if shape.type_name == "structure":
        names = list(shape.required_members)
        if getattr(shape, "is_tagged_union", False) and not names:
            usable = [name for name, member in shape.members.items() if member.name not in seen]
            names = usable[:1]
        return {wire_name(shape, name): valid(shape.members[name], (*seen, shape.name)) for name in names}
    if shape.type_name == "list":
        return [valid(shape.member, (*seen, shape.name)) for _ in range(low or 0)]
    if shape.type_name == "map":
        return {valid(shape.key): valid(shape.value, (*seen, shape.name)) for _ in range(low or 0)}
    if shape.type_name == "string":
        if shape.enum:
            return shape.enum[0]
        pattern = shape.metadata.get("pattern", ".*")
        texts = [text for text in TEXTS if len(text) >= (low or 0) and matches(pattern, text)]
        return texts[0] if texts else "a" * (low or 1)
    if shape.type_name in ("integer", "long", "float", "double"):
        return low or 0
    return {"boolean": False, "timestamp": "2024-02-01T12:34:56Z", "blob": "YQ=="}[shape.type_name]


def wire_name(shape, name):
    return shape.members[name].serialization.get("name", name)


def document(shape):
    """Any JSON is allowed in a document: it has no constraint to violate."""
    return getattr(shape, "is_document_type", False)


def wrong(shape, seen=()):
    """(what, value) for each way to violate a shape on the wire of JSON."""
    low, high = limits(shape)
    kind = shape.type_name
    if document(shape):
        return
    for name, value in JSON_TYPES.items():
        if name != IS[kind]:
            yield f"a {name} for a {kind}", value
    if kind == "string":
        yield from wrong_text(shape)
    elif kind in ("integer", "long", "float", "double"):
        yield from wrong_number(shape)
        if kind in ("integer", "long"):
            yield "a fraction", 1.5
    elif kind == "list":
        member = valid(shape.member, seen)
        if low:
            yield f"{low - 1} members", [member] * (low - 1)
        if high is not None:
            yield f"{high + 1} members", [copy.deepcopy(member) for _ in range(high + 1)]
        if not document(shape.member):
            yield "a null member", [None]
        if shape.member.name not in seen:
            for what, value in wrong(shape.member, (*seen, shape.member.name)):
                yield f"member: {what}", [value] + [member] * ((low or 1) - 1)
    elif kind == "map":
        value = valid(shape.value)
        if low:
            yield f"{low - 1} entries", {f"k{n}": value for n in range(low - 1)}
        if high is not None:
            yield f"{high + 1} entries", {f"k{n}": value for n in range(high + 1)}
        for what, key in wrong_text(shape.key):
            yield f"key: {what}", {key: value}
        for what, bad in wrong(shape.value, seen):
            yield f"value: {what}", {valid(shape.key): bad}
    elif kind == "structure":
        yield from wrong_structure(shape, valid(shape, seen), shape.members, seen)


def wrong_structure(shape, good, members, seen):
    names = {name: wire_name(shape, name) for name in members}
    if getattr(shape, "is_tagged_union", False):
        yield "no member of a union", {}
        pair = list(members)[:2]
        if len(pair) == 2:
            yield "two members of a union", {names[name]: valid(members[name], seen) for name in pair}
    for name, member in members.items():
        if name in shape.required_members:
            yield f"{name}: missing", {key: value for key, value in good.items() if key != names[name]}
            yield f"{name}: null", {**good, names[name]: None}
        if member.name in seen:
            continue
        base = {} if getattr(shape, "is_tagged_union", False) else good
        for what, value in wrong(member, (*seen, member.name)):
            yield f"{name}: {what}", {**base, names[name]: value}


def wrong_text(shape):
    low, high = limits(shape)
    if low:
        yield f"{low - 1} characters", "a" * (low - 1)
    if high is not None:
        yield f"{high + 1} characters", (valid(shape) + "a" * (high + 1))[: high + 1]
    if shape.enum:
        yield "outside the enum", "surprise"
        yield "another case of the enum", shape.enum[0].swapcase()
    pattern = shape.metadata.get("pattern")
    if pattern:
        for text in WRONG_TEXTS:
            if not matches(pattern, text):
                yield f"{text!r} for the pattern", text
        # The pattern holds for the whole text, not for a part of it.
        part = "!" + valid(shape) + "!"
        if not matches(pattern, part):
            yield "a match inside other text", part


def wrong_number(shape):
    low, high = limits(shape)
    if low is not None:
        yield "below the minimum", low - 1
    if high is not None:
        yield "above the maximum", high + 1


def wrong_parameter(shape):
    """Violations that a path, a query or a header can carry: all of it is text."""
    kind = shape.type_name
    if kind == "string":
        yield from wrong_text(shape)
    elif kind == "timestamp":
        yield from (("not a time", text) for text in ("yesterday", "1706790896", "2024-02-01", ""))
    elif kind == "boolean":
        yield from (("not a boolean", text) for text in ("maybe", "1", ""))
    else:
        yield from ((what, str(value)) for what, value in wrong_number(shape))
        yield from (("not a number", text) for text in ("many", "1.5", ""))


class Wire:
    """A request before it is signed: path members, query, headers, and a body that is not yet text."""

    def __init__(self, operation):
        self.operation, self.path, self.query, self.headers, self.body = operation, {}, {}, {}, None
        shape = operation.input_shape
        members = shape.members if shape else {}
        self.places = {name: member.serialization.get("location") for name, member in members.items()}
        self.payload = shape.serialization.get("payload") if shape else None
        in_body = {name for name, place in self.places.items() if place is None}
        if self.payload:
            self.body = b'{"prompt": "a", "max_gen_len": 1}'
        elif in_body:
            self.body = {name: value for name, value in valid(shape).items() if name in in_body}
            self.body.update(copy.deepcopy(EXTRAS.get(operation.name, {})))
        for name, place in self.places.items():
            if name in shape.required_members and place == "uri":
                self.path[name] = BASE if operation.service_model.service_name == "bedrock-runtime" else valid(members[name])

    def send(self, connection):
        def put(found):
            return urllib.parse.quote(self.path[found[1]], safe="")

        names = {self.operation.input_shape.members[name].serialization["name"]: value for name, value in self.path.items()}
        self.path = names
        path = re.sub(r"\{(\w+)\+?\}", put, self.operation.http["requestUri"])
        if self.query:
            path += "?" + urllib.parse.urlencode(self.query, quote_via=urllib.parse.quote)
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode() if self.body is not None else b""
        request = AWSRequest(self.operation.http["method"], ENDPOINT + path, headers=dict(self.headers), data=body)
        if body:
            request.headers["Content-Type"] = "application/json"
        SigV4Auth(KEYS, "bedrock", "us-east-1").add_auth(request)
        connection.request(request.method, path, body=body or None, headers=dict(request.headers.items()))
        answer = connection.getresponse()
        return {"status_code": answer.status, "headers": {k.lower(): v for k, v in answer.getheaders()}, "body": answer.read()}


# What makes the least request of an operation one that is accepted.
TURN = {"messages": [{"role": "user", "content": [{"text": "a"}]}]}
EXTRAS = {
    "Converse": {**TURN, "inferenceConfig": {"maxTokens": 1}},
    "ConverseStream": {**TURN, "inferenceConfig": {"maxTokens": 1}},
    "CountTokens": {"input": {"converse": TURN}},
    "CreateModelCustomizationJob": {
        "baseModelIdentifier": BASE,
        "trainingDataConfig": {"s3Uri": "s3://bucket/train.jsonl"},
        "outputDataConfig": {"s3Uri": "s3://bucket/output"},
    },
}


def cases(operation):
    shape = operation.input_shape
    if shape is None:
        return
    for name, member in shape.members.items():
        place = member.serialization.get("location")
        if name == Wire(operation).payload:
            continue  # InvokeModel's body belongs to the model family: the service model says nothing of it.
        if place is None:
            continue
        for what, text in wrong_parameter(member):
            wire = Wire(operation)
            if place == "uri":
                if text == "":
                    continue  # An empty path segment is another route, which no member can reach.
                wire.path[name] = text
            elif place == "querystring":
                wire.query[member.serialization["name"]] = text
            else:
                # A header is bytes of ASCII without outer spaces: other texts cannot be sent in it.
                if not text.isascii() or text != text.strip() or text == "":
                    continue
                wire.headers[member.serialization["name"]] = text
            yield f"{name}: {what}", wire
    in_body = {name: member for name, member in shape.members.items() if member.serialization.get("location") is None}
    wire = Wire(operation)
    if isinstance(wire.body, dict):
        for what, body in wrong_structure(shape, wire.body, in_body, (shape.name,)):
            bad = Wire(operation)
            bad.body = body
            yield what, bad


served = json.load(urllib.request.urlopen(ENDPOINT + "/openapi.json"))
wanted = {method["operationId"] for path in served["paths"].values() for method in path.values() if "operationId" in method}
address = urllib.parse.urlsplit(ENDPOINT)
connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
counts, found = collections.Counter(), []
for model in models:
    for name in sorted(wanted & set(model.operation_names)):
        operation = model.operation_model(name)
        for what, wire in cases(operation):
            answer = wire.send(connection)
            parsed = create_parser("rest-json").parse(answer, operation.output_shape)
            code = parsed.get("Error", {}).get("Code")
            counts[name] += 1
            if (answer["status_code"], code) != (400, "ValidationException"):
                found.append(f"{name}: {what}: {answer['status_code']} {code} {answer['body'][:160]!r}")
for name, count in sorted(counts.items()):
    print(f"{count:6} {name}")
print(f"{sum(counts.values()):6} cases")
if ledger := os.environ.get("TEST_PROMISES"):
    line = {"promise": 8, "test": "every_constraint_of_the_service_models", "on": "the API", "held": not found,
            "tried": [f"{sum(counts.values())} violations of {len(counts)} operations' constraints"],
            "found": [f"{len(found)} not answered by a 400 ValidationException"], "scale": os.environ.get("TEST_SCALE", "short")}
    with open(os.path.join(ledger, "lines.jsonl"), "a") as lines:
        lines.write(json.dumps(line) + "\n")
assert not found, "\n".join([f"{len(found)} violations were not refused:", *found])
assert sum(counts.values()) >= FLOOR, counts
