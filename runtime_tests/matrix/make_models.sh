#!/bin/sh
# Makes the dist folders that `make matrix` verifies:    make_models.sh BIN FOLDER MODELS DEMO
# The demo's tuned model and its base, and a model of MODELS where there is one, each exported for everyday and exact use.
# What is there is left alone. Prints the dist folders.

set -e
bin=$1 folder=$2 models=$3 demo=$4
mkdir -p "$folder"

# dist NAME MODEL: NAME with GGUF and ONNX, NAME-exact with the ONNX program that has one result.
dist() {
    [ -d "$folder/$1" ] || "$bin/edgeqaf" export "$2" --format gguf,onnx -o "$folder/$1" >&2
    [ -d "$folder/$1-exact" ] || "$bin/edgeqaf" export "$2" --format onnx --profile exact -o "$folder/$1-exact" >&2
    echo "$folder/$1 $folder/$1-exact"
}

if [ ! -d "$demo/merged" ]; then  # the part of `edgeqaf demo` that makes it, by the same commands
    "$bin/python" examples/home_assistant.py -o "$demo/data" >&2
    [ -d "$demo/base" ] || "$bin/edgeqaf" quantize examples/storyteller-6m -o "$demo/base" --grid q4_0 >&2
    "$bin/edgeqaf" finetune "$demo/base" --data "$demo/data/train.jsonl" -o "$demo/run-codes" --lr 0.1 --steps 320 \
        --max-length 128 --resume >&2
    "$bin/edgeqaf" merge "$demo/run-codes" -o "$demo/merged" >&2
fi
dist home-assistant "$demo/merged"
dist storyteller-6m "$demo/base"

if [ -d "$models/tinystories656k" ]; then
    [ -d "$folder/tinystories656k-base" ] ||
        "$bin/edgeqaf" quantize "$models/tinystories656k" -o "$folder/tinystories656k-base" --grid q4_0 >&2
    dist tinystories656k "$folder/tinystories656k-base"
else
    echo "no $models/tinystories656k: the matrix is without it" >&2
fi
