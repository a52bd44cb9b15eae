"""Several relay processes under one supervisor."""
