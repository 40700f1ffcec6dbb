"""The nouns and pure functions of human-object interaction detection, in the order of the flow.

image → detections → pairs → teacher signals → shard → batch → student → scored triplets → average precision
"""

__version__ = "0.1.0"
