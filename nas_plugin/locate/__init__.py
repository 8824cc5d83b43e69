"""Where a fact sits: token sequences, the subject's last token, context templates, keys, second moments."""
