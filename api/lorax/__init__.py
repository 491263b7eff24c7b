"""LoRAX's own routes, with its request and answer shapes; docs/lorax.md lists where they differ from LoRAX's."""
