# The command-line client, without torch and GPU. Build in the repository's root:
#   docker build -f docker/client.Dockerfile -t cxr-client .
FROM python:3.11-slim-bookworm

WORKDIR /opt/cxr
COPY . .
RUN pip install --no-cache-dir "."

RUN useradd --create-home --uid 10001 cxr
USER 10001
ENTRYPOINT ["cxr"]
