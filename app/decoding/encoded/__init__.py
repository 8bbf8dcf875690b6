"""What an encoded image would cost its decoder, checked before decoding: one file per format."""
