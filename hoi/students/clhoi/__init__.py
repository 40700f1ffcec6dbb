"""CL-HOI (Gao et al., 2024) on cached signals."""
