#!/usr/bin/env python3
"""Checks every dependency's licence and source against deny.toml, with nothing to install but the crates.

`cargo deny check licenses sources` says the same where cargo-deny is installed; the advisory
database has to be fetched, so advisories are checked there.
"""

import json
import re
import subprocess
import sys
import tomllib

allow = set(tomllib.load(open("deny.toml", "rb"))["licenses"]["allow"])
metadata = json.loads(
    subprocess.run(
        # Crates of other platforms are described too; cargo fetches those that are not here yet.
        ["cargo", "metadata", "--format-version", "1", "--locked"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
)


def satisfied(expression: str) -> bool:
    """Evaluates an SPDX expression: AND binds tighter than OR; `A/B` is the old way to write OR."""
    tokens = re.findall(r"\(|\)|[^()\s]+", expression.replace("/", " OR "))

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            right = both()
            value = value or right
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            right = one()
            value = value and right
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        if len(tokens) > 1 and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
            return token in allow or token.split(" WITH ")[0] in allow
        return token in allow

    return either()


wrong = []
for package in metadata["packages"]:
    source, licence = package["source"], package["license"]
    if source is None:
        continue
    if not source.startswith("registry+"):
        wrong.append(f"{package['name']}: comes from {source}, not from the registry")
    if licence is None:
        if not package["license_file"]:
            wrong.append(f"{package['name']}: declares no licence")
    elif not satisfied(licence):
        wrong.append(f"{package['name']} {package['version']}: licence {licence} is not in deny.toml")

print(f"{len(metadata['packages'])} packages, {len(wrong)} refused")
sys.exit("\n".join(wrong) if wrong else 0)
