"""Publishing checkpoints and getting them back. Run from the repository's root; not an installed package."""
