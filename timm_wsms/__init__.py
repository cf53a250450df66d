"""Weight-shared multi-stage networks for timm: importing this package registers `wsmean_<name>`,
`wsms_<name>` and `ms_<name>`.

```python
import timm, timm_wsms
model = timm.create_model("wsmean_resnet50", pretrained=True)
```
"""

from timm_wsms.errors import UserError
from timm_wsms.network.adapters import tie_adapters
from timm_wsms.network.cascade import Cascade
from timm_wsms.network.fuse import fuse
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.parallel_stages import parallel_stages
from timm_wsms.network.plain import to_backbone
from timm_wsms.network.recalibrate import recalibrate
from timm_wsms.network.wsms_net import WsmsNet
from timm_wsms.registry.why_not import why_not
from timm_wsms.registry.wsms import register, register_all

__version__ = "0.1.0"
__all__ = [
    "Cascade",
    "UserError",
    "WsmsMeanNet",
    "WsmsNet",
    "fuse",
    "parallel_stages",
    "recalibrate",
    "register",
    "tie_adapters",
    "to_backbone",
    "why_not",
]

register_all()
