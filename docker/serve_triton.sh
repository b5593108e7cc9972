#!/bin/sh
# Start Triton on the published repository at /models, or in the directory CXR_MODELS. Arguments go to tritonserver.
#
# Models: all are loaded at the start. `cxr export --load` with the admin key loads a new version. Nobody else can change
# models, logging or tracing. Without CXR_ADMIN_KEY the key is random, so nobody can change them.
# HTTP: Triton's own HTTP service is off, because one ordinary POST can end Triton 2.51. CXR_HTTP_INFERENCE=1 opens it. Use
# that only for trusted callers.
# Health: serving.container refuses a repository that this image's backend would run differently than at the gates. It
# watches Triton with real inferences, and exits when Triton hangs, so that the container is started again.
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
unset CXR_ADMIN_KEY # the models do not need it
python3 -m contract.repository "$models" # fails unless every file is as published

exec python3 -m serving.container tritonserver "--model-repository=$models" "--allow-http=$http" \
  --model-control-mode=explicit '--load-model=*' \
  "--grpc-restricted-protocol=$restricted" "--http-restricted-api=$restricted" \
  "--rate-limit=$rate_limit" --strict-readiness=true --exit-on-error=true "$@"
