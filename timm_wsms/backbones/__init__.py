"""The paper's own backbones, as ordinary timm models. Importing this package registers them."""

from timm_wsms.backbones import avgpool_resnet, cifar_densenet, cifar_resnet

CIFAR_NAMES = (*cifar_resnet.default_cfgs, *cifar_densenet.default_cfgs)
NAMES = (*CIFAR_NAMES, *avgpool_resnet.default_cfgs)

__all__ = ["CIFAR_NAMES", "NAMES"]
