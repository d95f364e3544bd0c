"""The frozen networks, one file a family, and names to backbones."""
