"""Source videos to shards: probe, transcode, write, verify."""
