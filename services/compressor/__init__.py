"""The compressor service: uploads, compression jobs, publication to the store."""
