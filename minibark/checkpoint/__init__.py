"""Whatever a checkpoint looks like on disk: found, read, renamed, checked, converted, saved.

(The top-level folder `weights/` holds data; this one is code.)
"""
