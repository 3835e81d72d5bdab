#!/usr/bin/env bash
# From a model's name to the records of a batch job.
#
#   RESOURCE_GROUP=... WORKSPACE=... MODEL=codellama/CodeLlama-7b-hf CHECKPOINT=path/to/checkpoint ROWS=folder/with/jsonl \
#     docs/text-generation-batch-endpoint.sh
#
# ENDPOINT names the endpoint (unique in its region), OUTPUT the folder for the records, RENDER_OPTIONS what `render` is told beside
# that, such as "--instances 2": the same each time. The files go to DEPLOY. Everything can be given again.
# It needs az with the extension ml, and somebody who is logged in.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${RESOURCE_GROUP:?the resource group of the workspace}"
: "${WORKSPACE:?the workspace of Azure ML}"
MODEL=${MODEL:-codellama/CodeLlama-7b-hf}
ENDPOINT=${ENDPOINT:-code-llama-batch}
ROWS=${ROWS:-yaml/batch/samples}
OUTPUT=${OUTPUT:-build/batch-job}
DEPLOY=${DEPLOY:-build/deploy}
LLAMA=${LLAMA:-.venv/bin/llama-endpoints}
NAME=$(basename "$MODEL" | tr '[:upper:]' '[:lower:]')
read -r -a OPTIONS <<< "${RENDER_OPTIONS:-}"
az configure --defaults group="$RESOURCE_GROUP" workspace="$WORKSPACE"

# Which machine and how much quota; then every row, before anything is bought.
"$LLAMA" plan --model "$MODEL" --for batch
"$LLAMA" render --model "$MODEL" --batch-endpoint "$ENDPOINT" --output "$DEPLOY" ${OPTIONS[@]+"${OPTIONS[@]}"}
"$LLAMA" validate "$DEPLOY"

if ! az ml model show --name "$NAME" --version 1 > /dev/null 2>&1; then
  "$LLAMA" package --checkpoint "${CHECKPOINT:?the folder with the checkpoint}" --variant "$MODEL" --output "build/$NAME" --overwrite
  az ml model create --file "$DEPLOY/yaml/models/$NAME.yml"
fi
# The image: llama-gpu-batch with vLLM, or llama-batch with `--engine pipeline`.
IMAGE=$(sed -n 's/^environment: azureml:\(.*\):1$/\1/p' "$DEPLOY/yaml/batch/$NAME.yml")
az ml environment show --name "$IMAGE" --version 1 > /dev/null 2>&1 \
  || az ml environment create --file "$DEPLOY/environments/${IMAGE#llama-}/environment.yml"

CLUSTER=$(sed -n 's/^compute: azureml://p' "$DEPLOY/yaml/batch/$NAME.yml")
az ml compute show --name "$CLUSTER" > /dev/null 2>&1 || az ml compute create --file "$DEPLOY/yaml/batch/compute/$CLUSTER.yml"
az ml batch-endpoint show --name "$ENDPOINT" > /dev/null 2>&1 \
  || az ml batch-endpoint create --name "$ENDPOINT" --file "$DEPLOY/yaml/batch/endpoint.yml"
az ml batch-deployment create --file "$DEPLOY/yaml/batch/$NAME.yml" --endpoint-name "$ENDPOINT" --set-default

JOB=$(az ml batch-endpoint invoke --name "$ENDPOINT" --deployment-name "$NAME" --input "$ROWS" --input-type uri_folder \
  --query name --output tsv)
az ml job stream --name "$JOB"
az ml job download --name "$JOB" --output-name score --download-path "$OUTPUT"
echo "The records are in $OUTPUT."
