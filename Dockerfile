# LeanTAD with CUDA: docker build -t leantad .
# docker run --gpus all --shm-size=8g -v "$PWD:/work" leantad train --recipe mine.yaml --out runs/mine
# --build-arg CUDA_IMAGE=... takes another base (Ubuntu or Debian with Python 3.10 to 3.13); the "devel" images
# have the compiler with which DeepSpeed builds its CPU Adam for offload. USER_ID is whom /work belongs to.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${CUDA_IMAGE}
ARG USER_ID=1000

# video: the driver's decoder (NVDEC), without which DALI decodes nothing on the GPU
ENV NVIDIA_VISIBLE_DEVICES=all
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       make g++ python3 python3-venv python3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --non-unique --uid ${USER_ID} --create-home leantad \
    && install --directory --owner leantad /work /home/leantad/LeanTAD

USER leantad
COPY --chown=leantad . /home/leantad/LeanTAD
WORKDIR /home/leantad/LeanTAD
RUN make setup PIP_ARGS=--no-cache-dir

ENV PATH=/home/leantad/LeanTAD/.venv/bin:${PATH}
WORKDIR /work
ENTRYPOINT ["leantad"]
CMD ["--help"]
