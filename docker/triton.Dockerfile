# Triton with the packages that the python models import. Build in the repository's root:
#   docker build -f docker/triton.Dockerfile -t cxr-triton .
# contract/ngc.py lists the supported releases and their contents. --build-arg NGC_RELEASE=25.07 chooses another one.
ARG NGC_RELEASE=26.07
FROM nvcr.io/nvidia/tritonserver:${NGC_RELEASE}-py3

WORKDIR /opt/cxr
COPY . .
RUN pip install --no-cache-dir ".[triton,sign]"
# Without this file Python writes a __pycache__ beside model.py. The next start would refuse these unpublished files.
RUN python3 -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'no_bytecode.pth').write_text('import sys; sys.dont_write_bytecode = True\n')"

# Keep freed memory for the next radiograph, as `cxr serve` does (serving/triton.py gives the reason).
ENV MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=536870912

# A volume that is mounted over the directory of TensorRT engines gets its owner from this directory.
RUN useradd --create-home --uid 10001 cxr && install --directory --owner cxr --mode 700 /var/cache/cxr-tensorrt
USER 10001
EXPOSE 8001 8002
# The check runs real inferences. Triton's own "ready" only means that the models were loaded once.
HEALTHCHECK --interval=15s --timeout=50s --start-period=120s \
  CMD ["python3", "-m", "serving.probe", "--timeout", "15"]
# The published repository is mounted at /models, read-only.
ENTRYPOINT ["/opt/cxr/docker/serve_triton.sh"]
