"""A person labels a folder of images: labels.py keeps answers, oracle.py hands them on, session.py asks."""
