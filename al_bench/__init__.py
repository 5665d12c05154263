"""al_bench: which images should be labelled next? Active-learning strategies on images, compared fairly."""

__version__ = "0.1.0"
