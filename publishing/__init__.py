"""What leaves for the Hub and how that fails; the one house that the others share. Knows huggingface_hub alone."""
