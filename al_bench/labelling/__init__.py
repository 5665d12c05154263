"""A person labels a folder of images: labels.py keeps answers, oracle.py hands them on, session.py asks."""

# Labels lie beside the folder of images: how the user names another place for them.
ELSEWHERE = "a link to the folder of images, made where you may write"
