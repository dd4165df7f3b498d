"""Makes the embedded model from nothing: tokenizer, dialogues, training, evaluation. Needs torch (extra `train`)."""
