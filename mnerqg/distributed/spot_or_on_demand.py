"""EC2 machines for Ray's autoscaler: spot where there are any, on demand where there are none.

Autoscaler v2 turns to a node type of lower `priority` only where a machine that was granted never came up; where EC2
refuses the launch, it asks for the same type again every second, for ever (Ray 2.60, `CloudResourceMonitor`).
"""

import logging
from collections.abc import Callable
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

# Ray tries one zone after another and tells the last one's answer: Unsupported, if that one has no such machines.
# The role for spot machines is the account's to make, not the head's (cluster/README.md).
_NO_SPOT = {
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    "Unsupported",
}

logger = logging.getLogger(__name__)


class SpotOrOnDemand(AWSNodeProvider):
    """Ray's own provider, for `provider: {type: external, module: ...}`; its settings are those of type aws."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch machines; each later launch asks for spot machines first again.

        Raises:
            NodeLaunchException: EC2 refuses, and not for want of spot machines only.
        """
        launch: Callable[..., dict[str, Any]] = super().create_node
        try:
            return launch(node_config, tags, count)
        except NodeLaunchException as error:
            if error.category not in _NO_SPOT or "InstanceMarketOptions" not in node_config:
                raise
            logger.warning("no spot machine to be had (%s); launching on demand", error.category)
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return launch(on_demand, tags, count)
