"""Legal files that Azure ML's client does not read: Azure Monitor's, a cluster's, Azure's other kinds and nobody's."""

from collections.abc import Mapping
from typing import Final

from hypothesis import strategies as st

from tests.support.legal_specs import ASSET_NAMES, HOSTS, TEXTS, Strategy, one_of

_DEPLOYED: Final = "/subscriptions/s/resourcegroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/onlineEndpoints/e/deployments/d"
_RULE: Final = st.fixed_dictionaries({
    "metricTrigger": st.fixed_dictionaries({
        "metricName": one_of("CpuUtilizationPercentage"), "metricResourceUri": one_of(_DEPLOYED, "[parameters('d')]"), "timeGrain": one_of("PT1M"),
        "statistic": one_of("Average", "Max"), "timeWindow": one_of("PT5M", "PT1H"), "timeAggregation": one_of("Average", "Last"), "operator": one_of("GreaterThan", "LessThan"), "threshold": one_of(70, 30.5),
    }),
    "scaleAction": st.fixed_dictionaries({"direction": one_of("Increase", "Decrease"), "type": one_of("ChangeCount"), "value": one_of("1", 2), "cooldown": one_of("PT1M", "PT1H")}),
})  # fmt: skip
_AUTOSCALE: Final = st.fixed_dictionaries({
    "type": one_of("Microsoft.Insights/autoscaleSettings"), "name": ASSET_NAMES, "location": one_of("westeurope"),
    "properties": st.fixed_dictionaries({
        "enabled": st.booleans(), "targetResourceUri": one_of(_DEPLOYED),
        "profiles": st.lists(st.fixed_dictionaries({"name": ASSET_NAMES, "capacity": one_of({"minimum": "2", "maximum": "5", "default": "2"}, {"minimum": 1, "maximum": 50, "default": 3}), "rules": st.lists(_RULE, max_size=2)}), min_size=1, max_size=2),
    }),
})  # fmt: skip
_INSTANCE_TYPE: Final = st.fixed_dictionaries({
    "apiVersion": one_of("amlarc.azureml.com/v1alpha1"), "kind": one_of("InstanceType"), "metadata": one_of({"name": "cpu-small"}),
    "spec": one_of({"resources": {"requests": {"cpu": "700m", "memory": "1500Mi"}, "limits": {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": 1}}}),
})  # fmt: skip
_OTHER: Final = st.fixed_dictionaries(
    {"$schema": one_of(*(f"{HOSTS[0]}/{kind}.schema.json" for kind in ("pipelineJob", "sweepJob", "parallelComponent", "pipelineComponentBatchDeployment", "workspace", "schedule")), "http://json-schema.org/draft-07/schema#")},
    optional={"type": one_of("pipeline", "sweep"), "jobs": one_of({}), "name": ASSET_NAMES},
)  # fmt: skip
_NOBODYS: Final = st.dictionaries(
    st.one_of(ASSET_NAMES, st.booleans(), st.integers(0, 9)),
    st.one_of(TEXTS, st.integers(), st.lists(TEXTS, max_size=2)),
    min_size=1,
    max_size=4,
)
LEGAL_ELSEWHERE: Final[Mapping[str, Strategy]] = {
    "autoscale": _AUTOSCALE,
    "instance type": _INSTANCE_TYPE,
    "another kind": _OTHER,
    "nobody's": _NOBODYS,
}
