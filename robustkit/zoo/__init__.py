"""The models that come with robustkit: one safetensors file each, named zoo:NAME."""
