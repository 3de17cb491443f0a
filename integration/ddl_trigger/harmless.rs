//! That nobody's DDL is in the way of, or fails by, the trigger.
