# The retrieval sidecar, FAISS on GPU. Build in the repository's root:
#   docker build -f docker/retrieval-gpu.Dockerfile -t cxr-retrieval:gpu .
FROM nvidia/cuda:12.6.3-runtime-ubuntu24.04

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/cxr
COPY . .
RUN pip install --no-cache-dir ".[retrieval,faiss-gpu]"

RUN useradd --create-home --uid 10001 cxr && mkdir /store && chown cxr /store
USER 10001
VOLUME /store
EXPOSE 8005 8006
ENTRYPOINT ["python", "-m", "retrieval.server", "--store", "/store", "--address", "0.0.0.0:8005", "--device", "gpu"]
