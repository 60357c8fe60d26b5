"""Fine-tune FunctionGemma to turn what people say into the right function call."""
