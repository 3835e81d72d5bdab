#!/bin/sh
# The container's first process, which turns into a server: azmlinfsrv where the deployment has a scoring script, else ours.
set -eu
if [ -n "${AZUREML_ENTRY_SCRIPT:-}" ]; then
    cd "${AML_APP_ROOT:?}"
    exec azmlinfsrv --entry_script "$AZUREML_ENTRY_SCRIPT" --port 5001
fi
# AZUREML_MODEL_DIR is the model's folder, or above it.
model=$(find -L "${AZUREML_MODEL_DIR:?}" -maxdepth 3 -name MLmodel -type f | head -n 1)
if [ -z "$model" ]; then
    echo "There is no MLmodel file below $AZUREML_MODEL_DIR: deploy a model that \`llama-endpoints package\` wrote." >&2
    exit 2
fi
PYTHONPATH="$(dirname "$model")/code" exec python -m llama_serving.server --host 0.0.0.0 --port 5001 --open-to-all
