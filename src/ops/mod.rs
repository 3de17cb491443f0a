//! Watching and steering: health, metrics, status page, logging.
