"""MLflow models-from-code: nothing is pickled, the model is this file and the code beside it."""

from llama_serving.hosts.mlflow_pyfunc import set_model

set_model()
