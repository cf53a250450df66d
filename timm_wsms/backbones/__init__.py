"""The paper's own backbones and those of our experiments, as ordinary timm models. Importing this registers them."""

from timm_wsms.backbones import avgpool_resnet, cifar_densenet, cifar_resnet, mnist_cnn

CIFAR_NAMES = (*cifar_resnet.default_cfgs, *cifar_densenet.default_cfgs)
NAMES = (*CIFAR_NAMES, *avgpool_resnet.default_cfgs, *mnist_cnn.default_cfgs)

__all__ = ["CIFAR_NAMES", "NAMES"]
