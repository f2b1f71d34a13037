"""Every member of every operation that names a place in object storage, by botocore's service models.

Prints a JSON list of [operation, path]; a path's step is a member's name, or null for an item of a list. A member
counts when its pattern is that of an S3 URI, or when it is a string whose own name or whose shape's name speaks of one.
"""

import json
import re

import botocore.session

session = botocore.session.get_session()


def speaks_of_a_place(name, shape):
    pattern = shape.metadata.get("pattern") or shape._shape_model.get("pattern") or ""
    return pattern.startswith("^s3://") or pattern.startswith("s3://") or re.search(r"s3_?uri$|^uri$", f"{name}", re.I) \
        or re.search(r"s3_?uri$", shape.name, re.I)


def walk(shape, path, seen):
    if shape.type_name == "structure":
        if shape.name in seen:
            return
        for name, member in shape.members.items():
            yield from walk(member, path + [name], seen + [shape.name])
    elif shape.type_name == "list":
        yield from walk(shape.member, path + [None], seen)
    elif shape.type_name == "map":
        yield from walk(shape.value, path + ["*"], seen)
    elif shape.type_name == "string":
        name = next(step for step in reversed(path) if step)
        if speaks_of_a_place(name, shape):
            yield path


found = []
for service in ("bedrock", "bedrock-runtime"):
    model = session.get_service_model(service)
    for operation in model.operation_names:
        shape = model.operation_model(operation).input_shape
        if shape:
            found += [[operation, path] for path in walk(shape, [], [])]
print(json.dumps(found))
