"""The REST API: HTTP in, one service call, a wire shape out."""
