"""Attention as other libraries call it, each in a module of its own that imports that library."""
