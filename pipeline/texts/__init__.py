"""What the tokenizer makes of the data: checked before a model is loaded, and shown token by token."""
