# One image a service, each with only what it may import: `docker build --target router .`
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS common
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/app PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 deltaserve \
    && mkdir -p /data /store \
    && chown deltaserve /data /store
WORKDIR /app
# What pip needs to know the dependencies, and no more: a changed source file does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deltaserve/__init__.py ./deltaserve/
VOLUME ["/data", "/store"]

FROM common AS router
RUN pip install -c constraints.txt '.[router]'
COPY deltaserve ./deltaserve
COPY services/router ./services/router
USER 10001
EXPOSE 50051 8000 9464
ENTRYPOINT ["python", "-m", "services.router"]

# The CPU build of torch; a GPU image gives an empty TORCH_INDEX and EXTRAS=,cuda (compose.gpu.yaml does).
FROM common AS torch
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} torch

FROM torch AS compressor
ARG EXTRAS=
RUN pip install -c constraints.txt ".[compressor${EXTRAS}]"
COPY deltaserve ./deltaserve
COPY services/compressor ./services/compressor
USER 10001
EXPOSE 50053 9464
ENTRYPOINT ["python", "-m", "services.compressor"]

FROM torch AS worker
ARG EXTRAS=
RUN pip install -c constraints.txt ".[worker${EXTRAS}]"
COPY deltaserve ./deltaserve
COPY kernels ./kernels
COPY services/worker ./services/worker
USER 10001
EXPOSE 50052 9464
ENTRYPOINT ["python", "-m", "services.worker"]
