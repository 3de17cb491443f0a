//! Where the two sides meet: capture, deliver, and what keeps them running.
