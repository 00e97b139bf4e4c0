# One image a service, each with only what it may import: `docker build --target router .`
ARG PYTHON=python:3.12-slim-bookworm

FROM ${PYTHON} AS common
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 deltaserve && mkdir -p /data /store && chown deltaserve /data /store
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deltaserve ./deltaserve
VOLUME /data /store

FROM common AS router
RUN pip install -c constraints.txt '.[router]'
COPY services/router ./services/router
USER deltaserve
EXPOSE 50051 8000
ENTRYPOINT ["python", "-m", "services.router"]

# The CPU build of torch: a GPU image replaces the index (and adds the `cuda` extra).
FROM common AS torch
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt --extra-index-url ${TORCH_INDEX} 'torch'

FROM torch AS compressor
RUN pip install -c constraints.txt '.[compressor]'
COPY services/compressor ./services/compressor
USER deltaserve
EXPOSE 50053
ENTRYPOINT ["python", "-m", "services.compressor"]

FROM torch AS worker
RUN pip install -c constraints.txt '.[worker]'
COPY services/worker ./services/worker
USER deltaserve
EXPOSE 50052
ENTRYPOINT ["python", "-m", "services.worker"]
