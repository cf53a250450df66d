"""Publishing on the Hugging Face Hub, and downloading from it: listed, complete, and checked before use."""
