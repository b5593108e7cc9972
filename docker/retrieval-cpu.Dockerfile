# The retrieval sidecar, FAISS on CPU. Build in the repository's root:
#   docker build -f docker/retrieval-cpu.Dockerfile -t cxr-retrieval:cpu .
FROM python:3.11-slim-bookworm

WORKDIR /opt/cxr
COPY . .
RUN pip install --no-cache-dir ".[retrieval,faiss-cpu]"

RUN useradd --create-home --uid 10001 cxr && mkdir /store && chown cxr /store
USER 10001
VOLUME /store
EXPOSE 8005 8006
ENTRYPOINT ["python", "-m", "retrieval.server", "--store", "/store", "--address", "0.0.0.0:8005", "--device", "cpu"]
