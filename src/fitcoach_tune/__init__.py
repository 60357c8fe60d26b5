"""Fine-tune FunctionGemma to turn what people say into the right function call."""

__version__ = "0.1.0"
