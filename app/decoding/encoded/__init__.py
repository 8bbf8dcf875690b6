"""One file a format: what an encoded image would cost its decoder, looked up before the decoder sees it."""
