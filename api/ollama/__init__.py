"""Ollama's routes, since editors look for them: /api/version, /api/tags, /api/show, /api/chat and /api/generate."""
