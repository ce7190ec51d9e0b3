"""The registry of mapped devices; tables live and inactive; suspend, resume, dependencies."""
