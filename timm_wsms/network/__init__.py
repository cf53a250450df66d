"""The networks: a timm backbone at several image sizes, and all that it is made of."""

from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.wsms_net import WsmsNet

__all__ = ["MultiStageNet", "WsmsMeanNet", "WsmsNet"]
