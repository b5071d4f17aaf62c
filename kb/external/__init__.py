"""Knowledge that other services hold, asked through the external-knowledge contract."""
