#!/usr/bin/env bash
# Requests that schemathesis draws from the served document, good ones and bad ones: no reply may be a 500, have
# another status, type or shape than the document says, accept what the document forbids or refuse what it allows.
#
#   tests/clients/schemathesis.sh [EXAMPLES]     for each operation and phase; 300 give more than 10,000 cases
#
# Endpoint and key come from the environment that tests/clients/mod.rs sets.
set -euo pipefail
tool=${SCHEMATHESIS:-schemathesis}
seed=${SCHEMATHESIS_SEED:-20260131}
scratch=${TUNESMITH_TEST_SCRATCH:-$(mktemp -d)}
echo "seed $seed"
config=$(cd "$(dirname "$0")" && pwd)/schemathesis.toml
cd "$scratch"
status=0
"$tool" --config-file "$config" run "$AWS_ENDPOINT_URL_BEDROCK/openapi.json" \
  --header "Authorization: Bearer $TUNESMITH_TEST_BEARER_KEY" \
  --phases coverage,fuzzing --max-examples "${1:-300}" --seed "$seed" --continue-on-failure \
  --warnings off --no-color | tee schemathesis.log || status=$?
if [ -n "${TEST_PROMISES:-}" ]; then
  cases=$(sed -n 's/^ *\([0-9]*\) generated.*/\1/p' schemathesis.log | tail -n 1)
  held=$([ "$status" = 0 ] && echo true || echo false)
  printf '{"promise": 8, "test": "schemathesis", "on": "the API", "seed": %s, "held": %s, "tried": ["%s requests drawn from the document by schemathesis"], "found": ["exit status %s"], "scale": "%s"}\n' \
    "$seed" "$held" "${cases:-?}" "$status" "${TEST_SCALE:-short}" >>"$TEST_PROMISES/lines.jsonl"
fi
exit "$status"
