"""HOICLIP (Ning et al., CVPR 2023) on cached signals."""
