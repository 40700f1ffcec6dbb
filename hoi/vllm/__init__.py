"""Vision language models as teachers: what they say of an image, and how likely they find a text."""
