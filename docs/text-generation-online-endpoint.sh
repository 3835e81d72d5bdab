#!/usr/bin/env bash
# From a model's name to an answer of its online endpoint.
#
#   RESOURCE_GROUP=... WORKSPACE=... MODEL=codellama/CodeLlama-7b-hf CHECKPOINT=path/to/checkpoint \
#     docs/text-generation-online-endpoint.sh
#
# ENDPOINT names the endpoint (unique in its region), REQUEST the file that is sent, RENDER_OPTIONS what `render` is told beside
# that, such as "--public-network-access disabled --sku NC40ads_H100_v5": the same each time. The files go to DEPLOY.
# Everything can be given again: what is there already is kept or brought up to date. It needs az with the extension ml, and
# somebody who is logged in.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${RESOURCE_GROUP:?the resource group of the workspace}"
: "${WORKSPACE:?the workspace of Azure ML}"
MODEL=${MODEL:-codellama/CodeLlama-7b-hf}
ENDPOINT=${ENDPOINT:-code-llama}
REQUEST=${REQUEST:-yaml/online/samples/completion.json}
DEPLOY=${DEPLOY:-build/deploy}
LLAMA=${LLAMA:-.venv/bin/llama-endpoints}
NAME=$(basename "$MODEL" | tr '[:upper:]' '[:lower:]')
read -r -a OPTIONS <<< "${RENDER_OPTIONS:-}"
az configure --defaults group="$RESOURCE_GROUP" workspace="$WORKSPACE"

# Which machine, how much quota, how long until it answers: before anything is bought.
"$LLAMA" plan --model "$MODEL"
"$LLAMA" render --model "$MODEL" --endpoint "$ENDPOINT" --output "$DEPLOY" ${OPTIONS[@]+"${OPTIONS[@]}"}
"$LLAMA" validate "$DEPLOY"

# The model: packaged here from a checkpoint, unless it is registered already (yaml/package/ does it inside Azure).
if ! az ml model show --name "$NAME" --version 1 > /dev/null 2>&1; then
  "$LLAMA" package --checkpoint "${CHECKPOINT:?the folder with the checkpoint}" --variant "$MODEL" --output "build/$NAME" --overwrite
  az ml model create --file "$DEPLOY/yaml/models/$NAME.yml"
fi
# The image: llama-gpu with vLLM, llama-gpu-server with `--front server`, or llama-online with `--engine pipeline`.
IMAGE=$(sed -n 's/^environment: azureml:\(.*\):1$/\1/p' "$DEPLOY/yaml/online/$NAME.yml")
az ml environment show --name "$IMAGE" --version 1 > /dev/null 2>&1 \
  || az ml environment create --file "$DEPLOY/environments/${IMAGE#llama-}/environment.yml"

az ml online-endpoint show --name "$ENDPOINT" > /dev/null 2>&1 \
  || az ml online-endpoint create --name "$ENDPOINT" --file "$DEPLOY/yaml/online/endpoint.yml"
if az ml online-deployment show --name "$NAME" --endpoint-name "$ENDPOINT" > /dev/null 2>&1; then
  az ml online-deployment update --file "$DEPLOY/yaml/online/$NAME.yml" --endpoint-name "$ENDPOINT"
else
  az ml online-deployment create --file "$DEPLOY/yaml/online/$NAME.yml" --endpoint-name "$ENDPOINT"
fi
az ml online-deployment get-logs --name "$NAME" --endpoint-name "$ENDPOINT" --lines 20

# First to this deployment alone; traffic once it has answered.
az ml online-endpoint invoke --name "$ENDPOINT" --deployment-name "$NAME" --request-file "$REQUEST"
az ml online-endpoint update --name "$ENDPOINT" --traffic "$NAME=100"
az ml online-endpoint invoke --name "$ENDPOINT" --request-file "$REQUEST"

echo "It costs money as long as it is there: az ml online-endpoint delete --name $ENDPOINT"
