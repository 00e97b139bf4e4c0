"""The delta format: checkpoints, headers, codecs, calibration algebra, reader and writer."""
