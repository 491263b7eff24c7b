"""The paths of the probes: authentication lets them pass, and the access log keeps quiet about them."""

from __future__ import annotations

HEALTH_PATHS = ("/health", "/healthz", "/v1/health")
READY_PATHS = ("/ready", "/readyz")
LIVE_PATHS = ("/live", "/livez")
"""Each route under its own name, then under the names that other servers and probes use."""
