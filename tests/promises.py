"""Runs the tests behind the promises and writes docs/promises.md: what was tried how often, and what came of it.

`tests/promises` starts what the tests talk to and calls this. Each test leaves lines of JSON (tests/support/promise.rs)
in the folder TEST_PROMISES; a promise is kept when its tests ran and all passed. What did not run is written as not
run, what failed as FAILED with its figure. docs/promises.json keeps the lines until their tests run again, so a run of
some promises leaves the rows of the others as they were.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "target" / "promises"
KEPT = ROOT / "docs" / "promises.json"
DOCUMENT = ROOT / "docs" / "promises.md"

# Number, whether it is one of the ten in front, the promise, and the filter of its tests.
PROMISES = [
    (1, True, "Every accepted job ends exactly once",
     "test(/^faults::kills::/) | test(/^faults::stages::a_job_/) | test(/^jobs::worlds::/)"),
    (2, True, "A killed run learns the same thing",
     "test(/^faults::kill::/) | test(/^train::tests::resume::/)"),
    (3, True, "A stale worker changes nothing", "test(/^faults::stale::/)"),
    (4, True, "What was acknowledged is there after a crash",
     "test(/^faults::acknowledged::/) | test(/^objects::crash::what/)"),
    (5, True, "Same request token, same result", "test(/^api::idempotency::/) | test(/^faults::races::/)"),
    (6, True, "No outage of a dependency loses or doubles work",
     "test(/^faults::(outage|database_away)::/) | test(/^objects::outage::/) | test(/^jobs::silence::/)"),
    (7, True, "Nobody gets in without a key, nobody sees another's things",
     "test(/^api::(unauthorised|accounts|private)::/)"),
    (8, True, "No input makes a 500, a panic, or a wrong 2xx",
     "test(/^clients::(every_constraint|schemathesis)/) | test(/^fuzz::/) | test(/^api::(programs|untrusted)::/)"),
    (9, True, "Hostile clients cannot starve the rest",
     "test(/^api::(limits|bodies)::/) | test(/^faults::slow::/) | test(/^objects::flood::/)"),
    (10, True, "A full disk or full memory stops one job, not the service", "test(/^faults::disk::/) | test(/^memory::/)"),
    (11, False, "Resume costs little", "test(/^faults::resume::/)"),
    (12, False, "Stop stops", "test(/^faults::stop::/) | test(/^faults::stages::a_stop/)"),
    (13, False, "SIGTERM is clean", "test(/^faults::drain::/) | test(/^faults::stages::sigterm/)"),
    (14, False, "Many clients at once", "test(/^faults::crowd::/) | test(/^api::paging::/)"),
    (15, False, "Storage keys cannot escape", "test(/^objects::embedded::/) | test(/^objects::uri::/)"),
    (16, False, "Bad data is explained, not endured", "test(/^data::preparing::/) | test(/^faults::bad_data::/)"),
    (17, False, "A bad artifact is never served",
     "test(/^train::tests::checkpoint::/) | test(/^artifacts::/) | test(/^api::serving::/)"),
    (18, False, "Streams end honestly", "test(/^api::runtime::/)"),
    (19, False, "Upgrades are safe", "test(/^upgrade::/)"),
    (20, False, "The document is the truth", "test(/^api::openapi::/) | test(/^clients::(boto3|the_javascript)/)"),
    (21, False, "Clocks may jump", "test(/^jobs::(worlds|queue)::/)"),
    (22, False, "Secrets stay secret", "test(/^api::keys::/)"),
    (23, False, "Long running does not leak", "test(/^faults::soak::/)"),
]


# Promises that are tried once more at full scale, with settings of their own and some of their tests.
AGAIN = {6: ({"TEST_OUTAGE_SECONDS": "600"}, "test(/^faults::outage::no_/)")}

# The test of each of the ten whose figures stand in the README too.
IN_FRONT = {
    1: "every_accepted_job_ends_once", 2: "a_killed_run_learns_the_same", 3: "a_worker_frozen_anywhere_changes_nothing",
    4: "what_was_acknowledged_is_there", 5: "one_token_of_each_kind", 6: "no_outage_loses_or_doubles_a_job",
    7: "every_operation_refuses", 8: "schemathesis", 9: "slow_clients_of_every_kind", 10: "a_disk_that_fills_at_any_step",
}
README = ROOT / "README.md"
MARKS = ("<!-- promises: written by tests/promises -->", "<!-- promises: end -->")


def commit():
    if named := os.environ.get("TEST_COMMIT"):
        return named  # Of an archive, whatever the tree is now.

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True).stdout.strip()
    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def machine():
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) >> 20
    return f"{os.cpu_count()} cores of {model}, {memory} GiB, Linux {platform.release().split('-')[0]}"


class Store:
    """An S3 server that is not ours: the one of the environment, Ceph's gateway, or moto, which each test starts."""

    def __init__(self):
        self.process, self.environment = None, {}
        if os.environ.get("TEST_S3_ENDPOINT"):
            return
        needed = ["radosgw", "ceph-mon", "ceph-osd", "ceph-mgr"]
        if not all(shutil.which(name) for name in needed):
            root = [] if os.getuid() == 0 else ["sudo", "-n"]
            for words in (["update"], ["install", "-y", "--no-install-recommends", *needed, "ceph-common"]):
                subprocess.run([*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", *words],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if not all(shutil.which(name) for name in needed):
            print("Ceph cannot be installed here: moto is the separate S3 server")
            return
        self.folder = tempfile.mkdtemp()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        keys = ("AKIAPROMISES", "a-secret-for-the-promises")
        self.process = subprocess.Popen(["bash", ROOT / "tests/support/ceph.sh", self.folder, str(port), *keys],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if "listens at" not in line:
            self.process.communicate()
            self.process = None
            print(f"Ceph did not start (see {self.folder}/log): moto is the separate S3 server")
            return
        version = subprocess.run(["radosgw", "--version"], text=True, capture_output=True).stdout.split()
        self.environment = {"TEST_S3_ENDPOINT": f"http://127.0.0.1:{port}", "TEST_S3_ACCESS_KEY": keys[0],
                            "TEST_S3_SECRET_KEY": keys[1], "TEST_S3_NAME": f"Ceph {version[2]} gateway"}

    def stop(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)


# How nextest says that a test has ended; a signal stands by its name.
ENDED = re.compile(r"\s+(PASS|FAIL|ABORT|SIG\w+|TIMEOUT|LEAK|LEAK-FAIL|TRY \d+ \w+)\s+\[.*?\]\s+(?:\(.*?\)\s+)?\S+\s+(\S+)")


def run(number, tests, arguments, environment):
    """Runs the tests of a promise; gives their lines, how each ended ("passed", "failed" or "not run"), what was
    counted, and whether nextest calls it a success."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **environment, "TEST_PROMISES": folder, "TEST_SCALE": arguments.scale,
                       "TEST_REQUIRE_ALL": "1", "NO_COLOR": "1"}
        if arguments.scale == "full":
            # Their own settings for how much.
            environment |= {"TUNESMITH_TEST_SLOW_CLIENTS": "500", "TUNESMITH_FUZZ_SECONDS": "60"}
        if arguments.backend:
            other = {"embedded": "separate", "separate": "embedded"}[arguments.backend]
            tests = f"({tests}) - test(/::{other}$/)"
        build = ["--locked", "--features", "fault-points", *(["--test", "suite"] if arguments.outside else [])]
        if arguments.archive:
            build = ["--archive-file", arguments.archive, "--workspace-remap", "."]
        if not shutil.which("cargo-nextest"):
            sys.exit("cargo-nextest is needed: cargo install --locked cargo-nextest")
        command = ["cargo", "nextest", "run", *build, "--no-fail-fast", "--no-tests=pass", "--success-output", "final",
                   "-E", tests]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, errors="replace")
        ended, said, log, last = {}, [], LOGS / f"{number:02}.log", None
        with log.open("w") as kept:
            for text in process.stdout:
                kept.write(text)
                if line := ENDED.match(text):
                    last = line[2]
                    if last not in ended:
                        ended[last] = "passed" if line[1] in ("PASS", "LEAK") else "failed"
                        print(f"  {line[1]} {last}", flush=True)
                elif "NOT RUN: " in text and ended.get(last) == "passed":
                    # The output of a test follows the line that repeats how it ended.
                    ended[last] = "not run"
                    print(f"  {text.strip()} {last}", flush=True)
                elif text.startswith("error"):
                    print("  " + text.rstrip()[:300], flush=True)
                if figure := re.match(r"\s*slow clients: (\{.*\})", text):
                    figures = json.loads(figure[1])
                    said.append({"promise": number, "test": "slow_clients_of_every_kind", "on": "the API", "seed": None,
                                 "scale": arguments.scale, "tried": [f"{figures['clients']} slow clients of four kinds"],
                                 "found": [f"{name} {round(value, 1)}" for name, value in figures.items()]})
        process.wait()
        lines = Path(folder) / "lines.jsonl"
        lines = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        slow = "faults::slow::slow_clients_of_every_kind_hold_up_no_honest_one"
        lines += [{**line, "held": ended.get(slow) == "passed"} for line in said[-1:]]
        counts = {}
        for what in ("replies", "log-lines"):
            path = Path(folder) / what
            counts[what] = path.read_text().splitlines() if path.exists() else []
        for left in Path(folder).glob("*-log*"):
            shutil.copy(left, LOGS / f"{number:02}-{left.name}")
        return lines, ended, counts, process.returncode == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="numbers, with commas between")
    parser.add_argument("--scale", choices=["full", "short"], default="full")
    parser.add_argument("--backend", choices=["embedded", "separate"])
    parser.add_argument("--tests", help="of the promise's tests only those that this filter of nextest takes")
    parser.add_argument("--outside", action="store_true", help="only tests of the suite, no unit tests")
    parser.add_argument("--archive", help="run what `cargo nextest archive` kept, with TEST_BINARY as the program")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true", help="only write the document from what is kept")
    arguments = parser.parse_args()
    if arguments.list:
        for number, star, promise, tests in PROMISES:
            print(f"{number:3}{'*' if star else ' '} {promise}\n      {tests}")
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    failed = False
    if not arguments.write:
        wanted = {int(number) for number in arguments.only.split(",") if number} or {line[0] for line in PROMISES}
        store = Store()
        try:
            for number, _, promise, tests in PROMISES:
                if number not in wanted:
                    continue
                print(f"== {number}. {promise}", flush=True)
                begun = datetime.datetime.now(datetime.timezone.utc)
                if arguments.tests:
                    tests = f"({tests}) & ({arguments.tests})"
                lines, ended, counts, good = run(number, tests, arguments, store.environment)
                failed |= not good or not ended or "failed" in ended.values()
                keep(number, arguments, begun, lines, ended, counts)
                if number in AGAIN and arguments.scale == "full" and not arguments.tests:
                    settings, tests = AGAIN[number]
                    lines, ended, counts, good = run(number, tests, arguments, {**store.environment, **settings})
                    failed |= not good or not ended or "failed" in ended.values()
                    # Beside the rows of the first time.
                    lines = [{**line, "test": line["test"] + "_again"} for line in lines]
                    keep(number, arguments, begun, lines, {f"{test} ({' '.join(settings.values())} s)": how
                                                          for test, how in ended.items()}, counts, again=True)
        finally:
            store.stop()
    write()
    return 1 if failed else 0


@contextlib.contextmanager
def kept_lines():
    """What is kept, by the promise's number; written back at the end. Runs of other promises may go on beside this."""
    KEPT.touch()
    with KEPT.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        everything = json.loads(file.read() or "{}")
        yield everything
        file.seek(0)
        file.truncate()
        file.write(json.dumps(dict(sorted(everything.items(), key=lambda item: int(item[0]))), indent=1) + "\n")


def keep(number, arguments, begun, lines, ended, counts, again=False):
    """Adds a run to what is kept of the promise. A test that ran again replaces what it gave before; a run of all
    tests of a promise replaces everything, so that no line of a test that is gone or broken stays."""
    stamp = {"date": begun.strftime("%Y-%m-%d %H:%M"), "commit": commit(), "scale": arguments.scale}
    replaced = {(line["test"], line["on"]) for line in lines}
    everything_ran = not (arguments.tests or arguments.backend or arguments.outside or again)
    with kept_lines() as everything:
        for name, kept in everything.items():
            stale = everything_ran and name == str(number)
            kept["lines"] = [line for line in kept["lines"]
                             if not stale and (line["test"], line["on"]) not in replaced]
        kept = everything.setdefault(str(number), {"lines": [], "tests": {}})
        kept["lines"] += [{**line, **stamp} for line in lines]
        if everything_ran:
            kept["tests"] = {}
        for test, how in ended.items():
            kept["tests"][test] = {**stamp, "ended": how}
        replies = {}
        for reply in counts["replies"]:
            status = reply.rsplit(" ", 1)[-1]
            replies[status] = replies.get(status, 0) + 1
        log_lines = sum(int(line) for line in counts["log-lines"])
        if again:
            log_lines += kept["log_lines"]
            replies = {status: replies.get(status, 0) + kept["replies"].get(status, 0)
                       for status in {*replies, *kept["replies"]}}
        kept["replies"], kept["log_lines"] = replies, log_lines


def write():
    """The document, from what is kept."""
    with kept_lines() as everything:
        everything = {int(name): kept for name, kept in everything.items()}
    rows, front, replies, log_lines, broken, silent = [], [], {}, 0, 0, 0
    # A test may say something of another promise than the one that it is run for.
    all_lines = [line for kept in everything.values() for line in kept["lines"]]
    for number, star, promise, _ in PROMISES:
        name = f"{'★' if star else ''}{number}. {promise}"
        for line in sorted((line for line in all_lines if line["promise"] == number),
                           key=lambda line: (line["test"], line["on"])):
            result = "; ".join(line["found"]) or ("kept" if line["held"] else "")
            if not line["held"]:
                result = f"**FAILED** {result}".strip()
                broken += 1
            seed = f" (seed {line['seed']})" if line.get("seed") is not None else ""
            tried = "; ".join(line["tried"]) or line["test"].replace("_", " ")
            scale = "" if line["scale"] == "full" else " *(short version)*"
            rows.append(f"| {name} | {line['on']} | {tried}{seed}{scale} | {result} | {line['date']} | {line['commit']} |")
            if IN_FRONT.get(number) == line["test"]:
                front.append(f"| {promise} | {line['on']} | {tried}{scale} | {result} |")
        kept = everything.get(number)
        if not kept or not kept["tests"]:
            rows.append(f"| {name} | | | **not run** | | |")
            silent += 1
            continue
        for status, count in kept["replies"].items():
            replies[status] = replies.get(status, 0) + count
        log_lines += kept["log_lines"]
        tests = kept["tests"]
        failed, absent = (sorted(test for test, how in tests.items() if how["ended"] == end)
                          for end in ("failed", "not run"))
        last = max(tests.values(), key=lambda how: how["date"])
        result = f"{len(tests) - len(failed) - len(absent)} passed"
        if absent:
            result = "**not run** " + ", ".join(f"`{test}`" for test in absent) + f"; {result}"
        if failed:
            broken += 1
            result = "**FAILED** " + ", ".join(f"`{test}`" for test in failed) + f"; {result}"
        rows.append(f"| {name} | all its tests | {len(tests)} tests | {result} | {last['date']} | {last['commit']} |")
    total = sum(replies.values())
    for number, what in ((20, f"{total:,} replies of all these runs held against the document"),
                         (22, f"{log_lines:,} log lines and {total:,} replies searched for planted secrets")):
        at = next(at for at, row in enumerate(rows) if f"| {number}. " in row)
        name = rows[at].split(" | ")[0]
        if total:
            rows.insert(at, f"{name} | all runs | {what} | none found but in what is marked FAILED | | |")
    by_status = ", ".join(f"{count:,} × {status}" for status, count in sorted(replies.items()))
    text = f"""# The promises, with their figures

Written by `bash tests/promises` on {machine()}. Each row says what was tried how often, what came of it, when, and at
which commit; `+` after a commit means that the tree held changes. A row marked *short version* was run at the scale of
the usual test run. What did not run is named as not run, and what failed as failed.

{len(PROMISES) - silent} of {len(PROMISES)} promises were run; {broken} rows are marked FAILED. In these runs {total:,}
replies of the service were held against its document ({by_status or "none"}), and {log_lines:,} log lines and every one of
those replies were searched for planted secrets: root secret, bearer key, session token, S3 secret, database password.

| promise | on | tried | result | date (UTC) | commit |
|---|---|---|---|---|---|
"""
    DOCUMENT.write_text(text + "\n".join(rows) + "\n")
    before, rest = README.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    table = ["| promise | on | tried | result |", "|---|---|---|---|", *front]
    README.write_text("\n".join([before + MARKS[0], *table, MARKS[1] + after]))
    print(f"wrote {DOCUMENT.relative_to(ROOT)} and the table of {README.name}")


if __name__ == "__main__":
    sys.exit(main())
