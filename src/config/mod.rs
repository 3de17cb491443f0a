//! `connector.toml`, checked. No I/O but reading the file, its secrets and the environment.
