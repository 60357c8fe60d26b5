"""The parts of `infer`: from an adapter and a question to an answer, and to what the called functions give."""
