"""What each stage contributes: accuracy without it (ablation), and class activation maps (CAM)."""
