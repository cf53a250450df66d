"""Other packages that work on timm models, on these networks; each needs the extra `clients`."""
