"""Human-object interaction detection without HOI labels, distilled from frozen vision-language models.

image → detections → pairs → teacher signals → shard → batch → student → scored triplets → average precision
"""

__version__ = "0.1.0"
