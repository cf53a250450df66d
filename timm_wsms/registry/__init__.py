"""The names `wsms_*` and `ms_*` in timm's registry, and the checkpoints that they start from."""
