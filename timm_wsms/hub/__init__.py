"""Publishing on the Hugging Face Hub, and what comes from there: listed, complete, and checked before use."""
