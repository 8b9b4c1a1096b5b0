"""Students: small language models, what they are trained on, and how they answer."""
