#!/bin/bash
# one-gpu COMMAND…: run COMMAND on a GPU that no other container uses. Compose gives all replicas of a service the same
# GPUs; each replica locks one of them in /gpus, a volume that they share. The lock ends with the process.
set -eu
export CUDA_DEVICE_ORDER=PCI_BUS_ID # as nvidia-smi numbers them
for gpu in $(nvidia-smi --query-gpu=index --format=csv,noheader); do
    exec 9>"${GPU_LOCKS:-/gpus}/$gpu"
    if flock --nonblock 9; then
        export CUDA_VISIBLE_DEVICES=$gpu MOTET_DATA_DIR="${MOTET_DATA_DIR:-/data}/gpu-$gpu"
        exec "$@"
    fi
done
echo "motet: each GPU is used by another replica; start fewer (REPLICAS)" >&2
exit 2
