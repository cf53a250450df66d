"""torch.fx finds its way through the methods of a backbone that is part of another network."""

import sys

import torch.fx
from timm.layers import get_notrace_functions

from timm_wsms.network.weight_sharing import TimmModel


def keep_opaque(backbone: TimmModel) -> None:
    """Has torch.fx leave timm's untraceable functions as calls in the files of the backbone's classes.

    timm hands a tracer those functions, but a tracer replaces them in the files of the modules that it sees called, and
    a network calls its backbone's methods. `resample_abs_pos_embed` of a ViT with `dynamic_img_size` is one of them.
    """
    names = {function.__name__: function for function in get_notrace_functions()}
    for file in {kind.__module__ for kind in type(backbone).__mro__ if issubclass(kind, torch.nn.Module)}:
        found = vars(sys.modules[file])
        for name in [name for name, function in names.items() if found.get(name) is function]:
            exec("wrap(name)", found, {"wrap": torch.fx.wrap, "name": name})  # it has to be called in that file
