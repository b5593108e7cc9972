#!/bin/sh
# Start Triton on the published repository at /models, or in the directory CXR_MODELS. Arguments go to tritonserver.
#
# Models: all are loaded at the start. `cxr export --load` with the admin key loads a new version. Nobody else can change
# models, logging or tracing. Without CXR_ADMIN_KEY the key is random, so nobody can change them.
# HTTP: Triton's own HTTP service is off, because one ordinary POST can end Triton 2.51. CXR_HTTP_INFERENCE=1 opens it. Use
# that only for trusted callers.
# Network: with CXR_TLS_DIR the gRPC port speaks TLS, and with CXR_TLS_REQUIRE_CLIENT=1 it requires client certificates. The
# folder is as `cxr certs` makes it. Triton knows no tokens. The calls about shared memory need the admin key, because
# whoever makes them could take away the regions of other clients; CXR_SHARED_MEMORY=1 opens them, for clients that share
# the container's /dev/shm.
# Signatures: with CXR_REQUIRE_SIGNATURE (public keys, separated by spaces) nothing starts unless one of them signed the
# repository. Triton cannot check what is loaded later, so CXR_ADMIN_KEY must be empty then: restart for a new version.
# Health: serving.container refuses a repository that this image's backend would run differently than at the gates. It
# watches Triton with real inferences, and exits when Triton hangs, so that the container is started again.
set -eu

models="${CXR_MODELS:-/models}"
if [ -n "${CXR_REQUIRE_SIGNATURE:-}" ] && [ -n "${CXR_ADMIN_KEY:-}" ]; then
  echo "CXR_REQUIRE_SIGNATURE and CXR_ADMIN_KEY exclude each other: Triton does not check what is loaded later. Leave" \
    "CXR_ADMIN_KEY empty, and restart the container to serve a new version." >&2
  exit 2
fi
# Fails unless every file is as published, and signed if CXR_REQUIRE_SIGNATURE is set.
python3 -m contract.repository "$models"
key="${CXR_ADMIN_KEY:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}"
protocols=model-repository,logging,trace
if [ "${CXR_SHARED_MEMORY:-0}" != 1 ]; then
  protocols="$protocols,shared-memory"
fi
restricted="$protocols:cxr-admin-key=$key"
rate_limit=off
if grep -q '"rate_limited": true' "$models/.published.json"; then
  rate_limit=execution_count
fi
http=false
if [ "${CXR_HTTP_INFERENCE:-0}" = 1 ]; then
  http=true
fi
if [ -n "${CXR_TLS_DIR:-}" ]; then
  mutual=false
  if [ "${CXR_TLS_REQUIRE_CLIENT:-0}" = 1 ]; then
    mutual=true
  fi
  if [ "$http" = true ]; then
    echo "CXR_HTTP_INFERENCE=1 and CXR_TLS_DIR exclude each other: Triton's HTTP service has no TLS." >&2
    exit 2
  fi
  set -- --grpc-use-ssl=true "--grpc-use-ssl-mutual=$mutual" "--grpc-server-cert=$CXR_TLS_DIR/server.crt" \
    "--grpc-server-key=$CXR_TLS_DIR/server.key" "--grpc-root-cert=$CXR_TLS_DIR/ca.crt" "$@"
fi
unset CXR_ADMIN_KEY # the models do not need it

exec python3 -m serving.container tritonserver "--model-repository=$models" "--allow-http=$http" \
  --model-control-mode=explicit '--load-model=*' \
  "--grpc-restricted-protocol=$restricted" "--http-restricted-api=$restricted" \
  "--rate-limit=$rate_limit" --strict-readiness=true --exit-on-error=true "$@"
