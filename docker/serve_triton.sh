#!/bin/sh
# Start Triton on the published repository at /models (CXR_MODELS names another place): the same model control as
# `cxr serve`. All models are loaded at the start; a new version is loaded when `cxr export --load` asks with the
# admin key, and nobody else can change models, logging or tracing. Without CXR_ADMIN_KEY the key is random, so nobody
# can at all.
# Triton's own HTTP is off: 2.51 ends at one ordinary POST. CXR_HTTP_INFERENCE=1 opens it, for trusted callers alone.
# serving.container refuses a repository that the backend here would not run as it was gated, watches Triton by real
# inferences and ends when it stands still, for the container to start again.
# Further arguments go to tritonserver.
set -eu

models="${CXR_MODELS:-/models}"
key="${CXR_ADMIN_KEY:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}"
restricted="model-repository,logging,trace:cxr-admin-key=$key"
rate_limit=off
if grep -q '"rate_limited": true' "$models/.published.json"; then
  rate_limit=execution_count
fi
http=false
if [ "${CXR_HTTP_INFERENCE:-0}" = 1 ]; then
  http=true
fi
unset CXR_ADMIN_KEY # the models need not know it
python3 -m contract.repository "$models" # ends the start unless every file is what was published

exec python3 -m serving.container tritonserver "--model-repository=$models" "--allow-http=$http" \
  --model-control-mode=explicit '--load-model=*' \
  "--grpc-restricted-protocol=$restricted" "--http-restricted-api=$restricted" \
  "--rate-limit=$rate_limit" --strict-readiness=true --exit-on-error=true "$@"
