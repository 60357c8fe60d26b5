"""The names of an adapter's files, as PEFT spells them."""

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
