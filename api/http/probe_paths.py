"""The paths of health probes: they need no API key, and the access log logs them at `debug`."""

from __future__ import annotations

HEALTH_PATHS = ("/health", "/healthz", "/v1/health")
READY_PATHS = ("/ready", "/readyz")
LIVE_PATHS = ("/live", "/livez")
"""Each route's name, then the names that other servers and probes use."""
