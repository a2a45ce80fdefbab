# For machines with NVIDIA GPUs. Not built or run so far: neither Docker nor a GPU was available.
# docker build -t openslip . && docker run --gpus all --ipc=host --stop-timeout 300 \
#   -v "$PWD/runs:/openslip/runs" -v /data:/data openslip model=clip_tiny
# Without --stop-timeout `docker stop` kills after 10 seconds, which is less than a large save takes.
FROM python:3.11-slim
# Triton, which torch.compile uses, needs a C compiler to build its kernel launchers.
RUN apt-get update && apt-get install --no-install-recommends --yes gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /openslip
COPY pyproject.toml README.md LICENSE train.py eval_zeroshot.py ./
COPY configs configs
COPY src src
# PyPI's Linux wheels of PyTorch bring their own CUDA libraries: the host needs only the driver.
RUN pip install --no-cache-dir --editable ".[wandb]"
ENV OPENSLIP_DATA=/data
ENTRYPOINT ["python", "train.py"]
