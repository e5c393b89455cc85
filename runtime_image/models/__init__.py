"""The small language models that ship with Capstan, and the script that trains them (``python -m models.train``)."""
