"""What stands around a published checkpoint: its card. Run from the repository's root; not an installed package."""
